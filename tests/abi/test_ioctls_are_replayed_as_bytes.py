"""A recorded ioctl, its number and its bytes, is answered as it was; pointers lead to user memory or EFAULT."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path

import pytest

from guestmem import MemslotError
from guestmem.abi.structures import (
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryCap,
    MemoryIoctl,
    MemoryRegion,
)
from guestmem.vm import KvmModel

HEADER = Path("/usr/include/linux/kvm.h")
RECORDED = bytes.fromhex("04000000 01000000 0000100000000000 0000010000000000 0000e07c497f0000".replace(" ", ""))


def test_numbers_are_the_kernels() -> None:
    """By _IO, _IOW and _IOWR of <asm-generic/ioctl.h>, type 0xAE."""
    none, write, both = 0, 1, 3
    encoded = {
        "CHECK_EXTENSION": (none, 0x03, 0),
        "CREATE_VCPU": (none, 0x41, 0),
        "GET_DIRTY_LOG": (write, 0x42, 16),
        "SET_NR_MMU_PAGES": (none, 0x44, 0),
        "SET_USER_MEMORY_REGION": (write, 0x46, 32),
        "SET_USER_MEMORY_REGION2": (write, 0x49, 160),
        "ENABLE_CAP": (write, 0xA3, 104),
        "CLEAR_DIRTY_LOG": (both, 0xC0, 24),
        "RESET_DIRTY_RINGS": (none, 0xC7, 0),
        "SET_MEMORY_ATTRIBUTES": (write, 0xD2, 32),
        "CREATE_GUEST_MEMFD": (both, 0xD4, 64),
    }
    assert {request.name: int(request) for request in MemoryIoctl} == {
        name: direction << 30 | size << 16 | 0xAE << 8 | number for name, (direction, number, size) in encoded.items()
    }
    capabilities = (2, 3, 10, 16, 21, 30, 81, 118, 166, 168, 192, 223, 225, 231, 232, 233, 234, 236, 244)
    assert tuple(int(cap) for cap in MemoryCap) == capabilities


@pytest.mark.skipif(not HEADER.exists(), reason=f"no {HEADER}")
def test_names_are_the_headers() -> None:
    """As far as this machine's header knows them."""
    known = dict(re.findall(r"^#define (KVM_CAP_\w+)\s+(\d+)", HEADER.read_text(), re.MULTILINE))
    found = {cap.name: int(known[f"KVM_CAP_{cap.name}"]) for cap in MemoryCap if f"KVM_CAP_{cap.name}" in known}
    assert len(found) > 8
    assert found == {name: int(MemoryCap[name]) for name in found}


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


@pytest.mark.parametrize("padding", [b"\0", b"\xff", b"\xa5"])
def test_the_second_form_with_whatever_is_in_its_padding(padding: bytes) -> None:
    """116 bytes that no kernel looks at: an old program may leave anything there."""
    vm = KvmModel()
    recorded = MemoryRegion.unpack(RECORDED).pack2()[:44] + padding * 116
    assert vm.ioctl(0x40A0AE49, recorded) == 0
    assert [slot.id for slot in vm.memslots] == [4]
    assert vm.ioctl(0x40A0AE49, recorded) == 0  # nothing changed
    assert vm.memslots.generation() == 1


def test_a_recorded_run_is_replayed_call_by_call() -> None:
    """Numbers, bytes and answers, as strace has them."""
    file = MemoryRegion(5, 4, 0x200000, 0x1000, 0, 0, 1000).pack2()
    calls: list[tuple[int, bytes | int, int]] = [
        (0xAE03, 10, 32764),
        (0x4068AEA3, EnableCap(168, 0, 1).pack(), 0),
        (0x4020AE46, RECORDED, 0),
        (0x4020AE46, RECORDED[:8] + bytes(8) + RECORDED[16:], 0),
        (0x4020AE46, b"\5" + RECORDED[1:8] + bytes(8) + RECORDED[16:], -errno.EEXIST),
        (0xC040AED4, CreateGuestMemfd(0x1000).pack(), 1000),
        (0x40A0AE49, file, 0),
        (0x40A0AE49, file, -errno.EINVAL),
        (0xC018AEC0, ClearDirtyLog(4, 8, 0, 8).pack(), -errno.EINVAL),
        (0xC018AEC0, ClearDirtyLog(4, 16, 0, 8).pack(), -errno.EFAULT),
        (0x4010AE42, DirtyLog(5, 0, 8).pack(), -errno.ENOENT),
        (0x4020AE46, b"\4" + bytes(31), 0),
        (0x4020AE46, b"\4" + bytes(31), -errno.EINVAL),
        (0xAE44, 63, -errno.EINVAL),
        (0xAEC7, 0, -errno.EINVAL),
        (0x4020AE47, RECORDED, -errno.ENOTTY),
    ]
    vm = KvmModel()
    for request, argument, expected in calls:
        try:
            answer = vm.ioctl(request, argument)
        except MemslotError as error:
            answer = -(error.errno or 0)
        assert answer == expected, (hex(request), argument)
    vm.check()


def test_a_log_is_copied_to_its_pointer() -> None:
    vm = KvmModel()
    vm.ioctl(0x4020AE46, RECORDED)
    held = vm.slot(4)
    assert held is not None
    bitmap = held.bitmap
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
