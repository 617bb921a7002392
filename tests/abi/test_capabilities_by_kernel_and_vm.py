"""KVM_CHECK_EXTENSION says what the rest of the ABI then does, on each kernel and for each kind of VM."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from abi_words import Ask
from guestmem import MemslotError
from guestmem.abi.checks import Host
from guestmem.abi.structures import CreateGuestMemfd, EnableCap, MemoryCap, MemoryIoctl, MemoryRegion
from guestmem.abi.versions import LINUX_6_12, LINUX_6_18, LINUX_7_3, LINUX_7_4, VERSIONS, KernelVersion
from guestmem.vm import KvmModel

PAGE = 0x1000
GUEST_MEMFD = 4
SAME_EVERYWHERE = {3: 1, 10: 32764, 16: 1, 81: 1, 118: 0, 166: 0, 168: 3, 192: 1 << 20, 223: 1 << 20, 225: 0}
SAME_EVERYWHERE |= {2: 1, 21: 1, 30: 1, 231: 1, 232: 1}
BY_KERNEL: list[tuple[KernelVersion, dict[str, Any], dict[int, int]]] = [
    (LINUX_6_12, {}, {233: 0, 234: 0, 236: 0, 244: 0}),
    (LINUX_6_12, {"private_memory": True, "tdp": True}, {233: 8, 234: 1, 236: 1, 244: 0}),
    (LINUX_6_18, {}, {233: 0, 234: 1, 236: 0, 244: 3}),
    (LINUX_6_18, {"private_memory": True, "tdp": True}, {233: 8, 234: 1, 236: 1, 244: 1}),
    (LINUX_6_18, {"guest_memfd": False}, {233: 0, 234: 0, 244: 0}),
    (LINUX_7_3, {}, {233: 0, 234: 1, 236: 0, 244: 3}),
    (LINUX_7_3, {"private_memory": True, "tdp": True}, {233: 8, 234: 1, 236: 1, 244: 1}),
    (LINUX_7_3, {"tdp": True}, {236: 1}),
    (LINUX_7_3, {"private_memory": True}, {250: 0}),
    (LINUX_7_4, {"private_memory": True}, {233: 0, 244: 3, 250: 8}),
    (LINUX_7_4, {"private_memory": True, "in_place_conversion": False}, {233: 8, 244: 1, 250: 0}),
    (LINUX_7_4, {"private_memory": True, "vm_attributes": True}, {233: 0, 244: 3, 250: 8}),
    (LINUX_6_18, {"private_memory": True, "vm_attributes": False}, {233: 0}),
    (LINUX_7_4, {}, {250: 0}),
    (replace(LINUX_7_4, tree="amazon"), {"private_memory": True}, {250: 0}),
    (LINUX_6_18, {"readonly": False}, {81: 0}),
    (LINUX_6_18, {"address_spaces": 2}, {118: 2}),
    (LINUX_6_18, {"user_slots": 32766}, {10: 32766}),
]


def errno_of(vm: KvmModel, request: int, argument: bytes | int) -> int:
    try:
        vm.ioctl(request, argument)
    except MemslotError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize(("version", "fields", "values"), BY_KERNEL)
def test_values(version: KernelVersion, fields: dict[str, Any], values: dict[int, int]) -> None:
    vm = KvmModel(Host(version=version, **fields))
    for cap, value in (SAME_EVERYWHERE | values).items():
        assert vm.ioctl(MemoryIoctl.CHECK_EXTENSION, cap) == value, MemoryCap(cap)
    for cap in (0, 9999, (1 << 32) + 10, (1 << 64) - 1):
        assert vm.ioctl(MemoryIoctl.CHECK_EXTENSION, cap) == 0


@pytest.mark.parametrize(("version", "fields", "values"), BY_KERNEL)
def test_what_they_say_is_done(version: KernelVersion, fields: dict[str, Any], values: dict[int, int]) -> None:
    vm = KvmModel(Host(version=version, **fields))

    def has(cap: MemoryCap) -> int:
        return vm.ioctl(MemoryIoctl.CHECK_EXTENSION, cap)

    def refused(region: MemoryRegion) -> int:
        return errno_of(vm, MemoryIoctl.SET_USER_MEMORY_REGION2, region.pack2())

    assert refused(MemoryRegion(0, 2, 0, PAGE)) == (0 if has(MemoryCap.READONLY_MEM) else errno.EINVAL)
    expected = errno.EBADF if has(MemoryCap.GUEST_MEMFD) else errno.EINVAL
    assert refused(MemoryRegion(1, GUEST_MEMFD, PAGE, PAGE)) == expected
    spaces = has(MemoryCap.MULTI_ADDRESS_SPACE) or 1
    assert refused(MemoryRegion(spaces << 16, 0, 0, PAGE)) == errno.EINVAL
    assert refused(MemoryRegion(spaces - 1 << 16 | 7, 0, 8 * PAGE, PAGE)) == 0
    assert refused(MemoryRegion(has(MemoryCap.NR_MEMSLOTS), 0, 2 * PAGE, PAGE)) == errno.EINVAL
    assert refused(MemoryRegion(has(MemoryCap.NR_MEMSLOTS) - 1, 0, 2 * PAGE, PAGE)) == 0
    for cap in (MemoryCap.DIRTY_LOG_RING, MemoryCap.MANUAL_DIRTY_LOG_PROTECT2):
        too_much = EnableCap(cap, 0, has(cap) + 1).pack()
        assert errno_of(vm, MemoryIoctl.ENABLE_CAP, too_much) == errno.EINVAL
        assert errno_of(vm, MemoryIoctl.ENABLE_CAP, EnableCap(cap, 0, has(cap)).pack()) == 0
    for cap in (MemoryCap.MANUAL_DIRTY_LOG_PROTECT, MemoryCap.DIRTY_LOG_RING_WITH_BITMAP, MemoryCap.USER_MEMORY):
        assert errno_of(vm, MemoryIoctl.ENABLE_CAP, EnableCap(cap, 0, 1).pack()) == errno.EINVAL


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("private", [False, True])
def test_flags_of_files(version: KernelVersion, private: bool) -> None:
    vm = KvmModel(Host(version=version, private_memory=private))
    known = vm.ioctl(MemoryIoctl.CHECK_EXTENSION, MemoryCap.GUEST_MEMFD_FLAGS)
    for flags in range(8):
        made = CreateGuestMemfd(PAGE, flags).pack()
        expected = errno.EINVAL if flags & ~known else 0
        assert errno_of(vm, MemoryIoctl.CREATE_GUEST_MEMFD, made) == expected


def test_a_kernel_without_guest_memfd_does_not_know_the_ioctl() -> None:
    vm = KvmModel(Host(guest_memfd=False))
    assert errno_of(vm, MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(PAGE).pack()) == errno.ENOTTY


@pytest.mark.parametrize("cap", [2, 21, 30])
def test_three_that_every_x86_kernel_has(ask: Ask, cap: int) -> None:
    """MMU_SHADOW_CACHE_CONTROL, DESTROY_MEMORY_REGION_WORKS, JOIN_MEMORY_REGIONS_WORKS: asked of the kernel, too."""
    assert ask("extension", cap).result == 1
