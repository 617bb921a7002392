"""A recorded ioctl, its number and its bytes, is answered as it was; pointers lead to user memory or EFAULT."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from guestmem import MemslotError
from guestmem.memslots.abi import (
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryIoctl,
    MemoryRegion,
)
from guestmem.vm import KvmModel

RECORDED = bytes.fromhex("04000000 01000000 0000100000000000 0000010000000000 0000e07c497f0000".replace(" ", ""))


def test_numbers_are_the_kernels() -> None:
    assert [hex(number) for number in (0x4020AE46, 0x40A0AE49, 0x4010AE42, 0xC018AEC0, 0xAEC7, 0xC040AED4)] == [
        hex(number)
        for number in (
            MemoryIoctl.SET_USER_MEMORY_REGION,
            MemoryIoctl.SET_USER_MEMORY_REGION2,
            MemoryIoctl.GET_DIRTY_LOG,
            MemoryIoctl.CLEAR_DIRTY_LOG,
            MemoryIoctl.RESET_DIRTY_RINGS,
            MemoryIoctl.CREATE_GUEST_MEMFD,
        )
    ]


def test_structures_go_both_ways() -> None:
    assert MemoryRegion.unpack(RECORDED) == MemoryRegion(4, 1, 0x100000, 0x10000, 0x7F497CE00000)
    assert MemoryRegion.unpack(RECORDED).pack() == RECORDED
    for made in (
        DirtyLog(4, 0, 1 << 46),
        ClearDirtyLog(4, 64, 128, 1 << 46),
        EnableCap(168, 0, 3),
        CreateGuestMemfd(0x1000, 3),
        MemoryRegion(4, 4, 0x1000, 0x2000, 0x3000, 0x4000, 9),
    ):
        packed = made.pack2() if isinstance(made, MemoryRegion) else made.pack()
        assert type(made).unpack(packed) == made
    for request, made in (
        (MemoryIoctl.GET_DIRTY_LOG, DirtyLog(0)),
        (MemoryIoctl.CLEAR_DIRTY_LOG, ClearDirtyLog(0)),
        (MemoryIoctl.ENABLE_CAP, EnableCap(0)),
        (MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(0)),
    ):
        assert request.argument_bytes == len(made.pack())


def test_by_value_and_by_address() -> None:
    by_value, by_address = KvmModel(), KvmModel()
    by_value.ioctl(0x4020AE46, RECORDED)
    held = ctypes.create_string_buffer(RECORDED, len(RECORDED))
    by_address.ioctl(0x4020AE46, ctypes.addressof(held))
    assert list(by_value.memslots) == list(by_address.memslots) != []
    with pytest.raises(MemslotError) as caught:
        by_address.ioctl(0x4020AE46, 8)
    assert caught.value.errno == errno.EFAULT


def test_a_log_is_copied_to_its_pointer() -> None:
    vm = KvmModel()
    vm.ioctl(0x4020AE46, RECORDED)
    bitmap = vm.slots[4].bitmap
    assert bitmap is not None
    bitmap.mark(9)
    buffer = ctypes.create_string_buffer(b"\xff" * 16, 16)
    assert vm.ioctl(MemoryIoctl.GET_DIRTY_LOG, DirtyLog(4, 0, ctypes.addressof(buffer)).pack()) == 0
    assert buffer.raw == b"\0\2" + bytes(6) + b"\xff" * 8


def _errno_in_a_child(vm: KvmModel) -> int:
    child = os.fork()
    if not child:
        try:
            os._exit(vm.ioctl(0x4020AE46, RECORDED))
        except MemslotError as error:
            os._exit(error.errno or 255)
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_dead_and_foreign_vms_are_eio() -> None:
    vm = KvmModel()
    assert _errno_in_a_child(vm) == errno.EIO
    assert not list(vm.memslots)
    assert vm.ioctl(0x4020AE46, RECORDED) == 0
    vm.dead = True
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(0xAEFE)
    assert caught.value.errno == errno.EIO
