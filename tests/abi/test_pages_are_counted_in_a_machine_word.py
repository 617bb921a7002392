"""Pages of all slots and spaces are one machine word: a create may not wrap it, a delete not underflow it."""

from __future__ import annotations

import errno
import random

import pytest

from guestmem import InvariantError, MemslotError
from guestmem.memslots.abi import MemoryIoctl, MemoryRegion
from guestmem.memslots.accounting import PageAccounting
from guestmem.memslots.checks import Host
from guestmem.vm import KvmModel

LARGEST = (1 << 31) - 1


def region(slot: int, base_gfn: int, npages: int) -> bytes:
    return MemoryRegion(slot, 0, base_gfn << 12, npages << 12, 0).pack()


def test_a_create_that_would_wrap_is_einval_and_changes_nothing() -> None:
    vm = KvmModel(Host(word_bits=32, task_size_max=1 << 62))
    with pytest.raises(MemslotError, match="not a multiple"):  # 2**32 bytes do not fit the word either
        vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region(0, 0, 1 << 20))
    total = PageAccounting(32)
    for _ in range(2):
        total.create(LARGEST)
    total.create(1)
    with pytest.raises(MemslotError) as caught:
        total.create(1)
    assert caught.value.errno == errno.EINVAL
    assert total.pages == 2 * LARGEST + 1 == (1 << 32) - 1


def test_the_wrap_comes_before_overlap() -> None:
    vm = KvmModel()
    vm.accounting.create((1 << 64) - 3)
    with pytest.raises(MemslotError, match="wrap a word of 64 bits") as caught:
        vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region(0, 0, 3))
    assert caught.value.errno == errno.EINVAL
    vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region(0, 0, 2))


def test_an_underflow_is_eio_and_the_slot_stays() -> None:
    vm = KvmModel()
    vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region(0, 0, 4))
    vm.accounting.pages = 3
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region(0, 0, 0))
    assert caught.value.errno == errno.EIO
    assert len(vm.memslots) == 1
    with pytest.raises(InvariantError, match="the cached total is 0x3 pages, the slots have 0x4"):
        vm.check()


def test_the_total_is_that_of_all_slots(rng: random.Random) -> None:
    vm = KvmModel(Host(address_spaces=2))
    there: dict[int, int] = {}
    for _ in range(300):
        key = rng.randrange(6) | rng.randrange(2) << 16
        npages = rng.choice((0, 1, 5, 9))
        base = 16 * rng.randrange(12)
        try:
            vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region(key, base, npages))
        except MemslotError:
            continue
        if npages:
            there[key] = npages
        else:
            del there[key]
        assert vm.accounting.pages == sum(there.values())
    assert there
    vm.check()
