"""Pages of all slots and spaces are one machine word: a create may not wrap it, a delete not underflow it."""

from __future__ import annotations

import errno
import random

import pytest

from guestmem import InvariantError, MemslotError, UsageError
from guestmem.abi.accounting import PageAccounting
from guestmem.abi.checks import Host
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.vm import KvmModel

SET = MemoryIoctl.SET_USER_MEMORY_REGION


def region(slot: int, base_gfn: int, npages: int) -> bytes:
    return MemoryRegion(slot, 0, base_gfn << 12, npages << 12, 0).pack()


def test_a_create_that_would_wrap_is_einval_and_changes_nothing() -> None:
    """Through the front door in a word of 32 bits: 4096 slots of 4 GiB less a page, and the next cannot come."""
    vm = KvmModel(Host(word_bits=32))
    with pytest.raises(MemslotError, match="memory_size 0x100000000 is no word of 32 bits"):
        vm.ioctl(SET, region(0, 0, 1 << 20))
    npages = (1 << 20) - 1
    for slot in range(4096):
        vm.ioctl(SET, region(slot, slot << 20, npages))
    assert vm.accounting.pages == (1 << 32) - 4096
    before, generation = len(vm.memslots), vm.memslots.generation()
    with pytest.raises(MemslotError, match="npages 0x1001 and the 0xfffff000 of all slots wrap a word of 32") as caught:
        vm.ioctl(SET, region(4096, 4096 << 20, 4097))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(MemslotError, match="wrap a word of 32 bits"):
        vm.ioctl(SET, region(4096, 4096 << 20, 4096))  # 2**32 itself is 0 in such a word
    assert (len(vm.memslots), vm.memslots.generation(), vm.accounting.pages) == (before, generation, (1 << 32) - 4096)
    vm.ioctl(SET, region(4096, 4096 << 20, 4095))
    assert vm.accounting.pages == (1 << 32) - 1
    vm.ioctl(SET, region(0, 4097 << 20, npages))  # a move needs no room
    vm.ioctl(SET, region(0, 0, 0))
    vm.ioctl(SET, region(4097, 0, npages))
    vm.check()


@pytest.mark.parametrize("word_bits", [32, 64])
def test_the_word_is_full_at_its_largest_number(word_bits: int) -> None:
    total, largest = PageAccounting(word_bits), (1 << word_bits) - 1
    total.create(largest)
    assert not total.can_create(1)
    with pytest.raises(MemslotError, match=f"wrap a word of {word_bits} bits") as caught:
        total.create(1)
    assert caught.value.errno == errno.EINVAL
    assert total.pages == largest
    total.delete(largest)
    with pytest.raises(MemslotError) as caught:
        total.delete(1)
    assert (caught.value.errno, total.pages) == (errno.EIO, 0)
    with pytest.raises(UsageError, match="word_bits: 16 is not 32 or 64"):
        PageAccounting(16)


def test_the_wrap_comes_before_overlap() -> None:
    vm = KvmModel()
    vm.ioctl(SET, region(0, 0, 1))
    vm.accounting.create((1 << 64) - 4)
    for base_gfn in (0, 8):
        with pytest.raises(MemslotError, match="wrap a word of 64 bits") as caught:
            vm.ioctl(SET, region(1, base_gfn, 3))
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET, region(1, 0, 2))
    assert caught.value.errno == errno.EEXIST
    vm.ioctl(SET, region(1, 8, 2))


def test_an_underflow_is_eio_and_the_slot_stays() -> None:
    vm = KvmModel()
    vm.ioctl(SET, region(0, 0, 4))
    vm.accounting.pages = 3
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET, region(0, 0, 0))
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
            vm.ioctl(SET, region(key, base, npages))
        except MemslotError:
            continue
        if npages:
            there[key] = npages
        else:
            del there[key]
        assert vm.accounting.pages == sum(there.values())
    assert there
    vm.check()
