"""A system call from compiled code answers as the kernel does, and narrow accesses touch their bytes only."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from guestmem import explore, system
from guestmem.atomics import peek, poke
from guestmem.compiled import U64, compiled, words

GETPID = 39 if int(system.SYS_IOCTL) == 16 else 172
NO_FD = 1 << 30


@compiled
def call(number: U64, first: U64, second: U64, third: U64) -> U64:
    return system.system_call(number, first, second, third)


@compiled
def load(address: U64, size: U64) -> U64:
    if size == 1:
        return system.host_load8(address)
    if size == 2:
        return system.host_load16(address)
    return system.host_load32(address)


@compiled
def store(address: U64, size: U64, value: U64) -> None:
    if size == 1:
        system.host_store8(address, value)
    elif size == 2:
        system.host_store16(address, value)
    else:
        system.host_store32(address, value)


def test_a_result_is_the_kernels() -> None:
    assert call(GETPID, 0, 0, 0) == os.getpid()
    assert system.failed(call(GETPID, 0, 0, 0)) == 0


def test_a_failure_carries_its_number() -> None:
    assert system.failed(call(int(system.SYS_IOCTL), NO_FD, 0, 0)) == errno.EBADF
    with explore.load() as twin:
        room = twin.room("system")
        assert room.failed(room.system_call(room.SYS_IOCTL, NO_FD, 0, 0)) == errno.EBADF


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_narrow_access_touches_its_bytes_only(size: int) -> None:
    with explore.load() as twin:
        room = twin.room("system")
        for place in range(0, 8, size):
            for loads, stores in (
                (lambda at: load(at, size), lambda at, value: store(at, size, value)),
                (getattr(room, f"host_load{8 * size}"), getattr(room, f"host_store{8 * size}")),
            ):
                cells = words(2)
                host = cells_address(cells)
                background = 0x1122334455667788
                poke(cells, 0, background)
                expected = bytearray(background.to_bytes(8, sys.byteorder))
                assert loads(host + place) == int.from_bytes(expected[place : place + size], sys.byteorder)
                stores(host + place, 0xA1B2C3D4E5F60718)
                expected[place : place + size] = (0xA1B2C3D4E5F60718 % 256**size).to_bytes(size, sys.byteorder)
                assert peek(cells, 0) == int.from_bytes(expected, sys.byteorder)
                assert peek(cells, 1) == 0


def cells_address(cells: object) -> int:
    return int(getattr(cells, "address", 0) or cells.ctypes.data)  # type: ignore[attr-defined]  # the compiled form's
