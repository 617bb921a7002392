"""6.12, 6.18, 7.3 and 7.4 differ where the table says so, and nowhere else among random calls."""

from __future__ import annotations

import dataclasses
import errno
import random

import pytest

from guestmem import MemslotError, UsageError
from guestmem.abi.checks import Host
from guestmem.abi.structures import CreateGuestMemfd, MemoryIoctl, MemoryRegion
from guestmem.abi.versions import (
    DIFFERENCES,
    LINUX_6_12,
    LINUX_6_18,
    LINUX_6_18_44,
    LINUX_7_3,
    LINUX_7_4,
    VERSIONS,
    KernelVersion,
    version_of,
)
from guestmem.conform.calls import CALL_BYTES, decode_block
from guestmem.conform.run import ask_model, explain
from guestmem.vm import KvmModel

SET2 = MemoryIoctl.SET_USER_MEMORY_REGION2


def bound_twice(version: KernelVersion, *, private: bool = False) -> int | None:
    """Errno of binding a range of a guest_memfd a second time, at other frames."""
    vm = KvmModel(Host(version=version, private_memory=private))
    file = vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(0x2000).pack())
    vm.ioctl(SET2, MemoryRegion(0, 4, 0, 0x1000, 0, 0, file).pack2())
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET2, MemoryRegion(1, 4, 0x8000, 0x2000, 0, 0, file).pack2())
    return caught.value.errno


def test_a_range_bound_twice() -> None:
    assert bound_twice(LINUX_6_12, private=True) == errno.EINVAL
    assert bound_twice(LINUX_6_18) == errno.EINVAL
    assert bound_twice(LINUX_7_3) == errno.EEXIST


def test_guest_memfd_for_ordinary_vms() -> None:
    vm = KvmModel(Host(version=LINUX_6_12))
    file = vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(0x1000).pack())
    with pytest.raises(MemslotError, match="flags 0x4 are not of 0x0"):
        vm.ioctl(SET2, MemoryRegion(0, 4, 0, 0x1000, 0, 0, file).pack2())
    with pytest.raises(MemslotError, match="guest_memfd: flags 0x1 are not of 0x0"):
        vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(0x1000, 1).pack())


def test_internal_slots() -> None:
    for version in VERSIONS:
        vm = KvmModel(Host(version=version))
        flagged = MemoryRegion(32764, 1, 0xFFFBD000, 0x3000, 0)
        if version is LINUX_6_12:
            vm.set_internal_region(flagged)
        else:
            with pytest.raises(MemslotError, match="KVM's own slots have none"):
                vm.set_internal_region(flagged)
            vm.set_internal_region(flagged._replace(flags=0))
        with pytest.raises(MemslotError, match="is user space's"):
            vm.set_internal_region(MemoryRegion(5, 0, 0, 0x1000, 0))
        assert vm.accounting.pages == 3
        vm.check()


@pytest.mark.slow
def test_random_calls_find_no_other_difference(rng: random.Random) -> None:
    there, differing = Host(version=LINUX_6_18), 0
    for _ in range(60):
        calls = decode_block(rng.randbytes(CALL_BYTES * 200))
        answers = ask_model(there, calls)
        for version in VERSIONS:
            if ask_model(dataclasses.replace(there, version=version), calls) != answers:
                differing += 1
                assert version is not LINUX_7_3 or explain(Host(version=version), calls, answers)
    assert differing


def test_releases() -> None:
    assert version_of("6.12.107") is LINUX_6_12
    assert version_of("6.17.0-rc3") is LINUX_6_12
    assert version_of("6.18.43-fc") is LINUX_6_18
    assert version_of("6.18.44-fc") is version_of("6.18.101") is LINUX_6_18_44
    assert version_of("6.19") is LINUX_6_18
    assert version_of("7.3.9") is LINUX_7_3
    assert version_of("7.10") is LINUX_7_4
    with pytest.raises(UsageError, match="older than what is known"):
        version_of("5.10.1")
    with pytest.raises(UsageError, match="does not begin with a version"):
        version_of("next")
    assert len(DIFFERENCES) == 11
