"""A create or flag change spends one generation, a delete or move two, a refused move two; 19 bits come round."""

from __future__ import annotations

import errno
import random

import pytest

from guestmem import MemslotError
from guestmem.abi.checks import Host
from guestmem.abi.structures import EnableCap, MemoryIoctl, MemoryRegion
from guestmem.atomics import poke
from guestmem.memslots import SlotKey
from guestmem.memslots.layout import GENERATION, active_set
from guestmem.vm import KvmModel

SET = MemoryIoctl.SET_USER_MEMORY_REGION


def region(slot: int, base_gfn: int = 0, npages: int = 0, flags: int = 0) -> bytes:
    return MemoryRegion(slot, flags, base_gfn << 12, npages << 12, 0).pack()


@pytest.mark.parametrize("spaces", [1, 2])
def test_what_each_change_spends(spaces: int) -> None:
    vm = KvmModel(Host(address_spaces=spaces))
    before = vm.memslots.generation()
    for change, swaps in (
        (region(0, 0, 4), 1),
        (region(0, 0, 4, 1), 1),
        (region(0, 0, 4, 1), 0),
        (region(0, 8, 4), 2),
        (region(0), 2),
    ):
        vm.ioctl(SET, change)
        assert vm.memslots.generation() - before == swaps * spaces
        before = vm.memslots.generation()


def test_spaces_never_share_a_generation() -> None:
    vm = KvmModel(Host(address_spaces=2))
    for key in (0, 1 << 16, 1, 1 << 16 | 1):
        vm.ioctl(SET, region(key, 16 * (key & 1), 4))
        assert vm.memslots.generation(0) % 2 == 0
        assert vm.memslots.generation(1) % 2 == 1
    assert len(vm.memslots) == 4  # the same frames, once in each space
    vm.check()


def test_a_move_past_the_last_frame_fails_after_it_has_invalidated() -> None:
    vm = KvmModel(Host(max_gfn=0xFFFF))
    vm.ioctl(SET, region(0, 0, 4))
    vm.ioctl(SET, region(1, 0xFFF0, 4))
    before, slot = vm.memslots.generation(), vm.memslots.by_id(0)
    with pytest.raises(MemslotError, match="last frame is past 0xffff") as caught:
        vm.ioctl(SET, region(0, 0xFFFE, 4))
    assert caught.value.errno == errno.EINVAL
    assert vm.memslots.by_id(0) == slot
    assert vm.memslots.generation() == before + 2
    with pytest.raises(MemslotError) as caught:  # but an overlap is found before
        vm.ioctl(SET, region(0, 0xFFF3, 14))
    assert caught.value.errno == errno.EINVAL  # npages differ, even earlier
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET, region(2, 0xFFF3, 14))
    assert caught.value.errno == errno.EEXIST
    assert vm.memslots.generation() == before + 2
    vm.check()


def begin_at(vm: KvmModel, as_id: int, generation: int) -> None:
    """As after so many swaps, which would take a minute."""
    words = vm.memslots.words
    poke(words, int(active_set(words, as_id)) + int(GENERATION), generation)


@pytest.mark.parametrize("spaces", [1, 2])
def test_mmio_generations_come_round(spaces: int, rng: random.Random) -> None:
    """A naive oracle looks at every generation that a space goes through: 19 bits, less the bits of the space."""
    vm = KvmModel(Host(address_spaces=spaces))
    there = []
    for as_id in range(spaces):
        begin_at(vm, as_id, (1 << 19) - 8 * spaces + as_id)
        vm.ioctl(SET, region(as_id << 16 | 1, 16, 4))
        there.append((16, 0))
    zaps = 0
    for _ in range(40):
        as_id = rng.randrange(spaces)
        before = vm.memslots.generation(as_id)
        base_gfn, flags = there[as_id] = rng.choice(((16, 0), (16, 1), (32, 0), (32, 1)))
        vm.ioctl(SET, region(as_id << 16 | 1, base_gfn, 4, flags))
        after = vm.memslots.generation(as_id)
        assert after % spaces == as_id
        for generation in range(before + spaces, after + 1, spaces):
            zaps += generation & ((1 << 19) - 1) & ~(spaces - 1) == 0
        assert vm.mmio_zaps == zaps
    assert zaps == spaces
    begin_at(vm, 0, (1 << 20) - spaces)
    vm.ioctl(SET, region(2, 64, 4))
    assert vm.mmio_zaps == zaps + 1
    vm.check()


@pytest.mark.parametrize(("short_of_it", "entered"), [(3, False), (2, True), (1, True), (0, False), (-5, False)])
def test_when_they_come_round_every_translation_goes(short_of_it: int, entered: bool) -> None:
    """Seen on Linux 6.18 at the 524288th swap: pages of rings are entered again, though nothing was reset."""
    vm = KvmModel()
    vm.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(192, 0, 4096).pack())
    vm.ioctl(MemoryIoctl.CREATE_VCPU, 0)
    vm.ioctl(SET, region(0, 0, 4, 1))
    vm.ioctl(SET, region(1, 16, 4))
    ring = vm.dirty.rings[0]
    assert ring is not None
    begin_at(vm, 0, (1 << 19) - short_of_it)
    vm.dirty.mark(SlotKey(0, 0), 2, 0)
    assert len(ring.harvest()) == 1
    for flags in (1, 0):
        vm.ioctl(SET, region(1, 16, 4, flags))
    vm.dirty.mark(SlotKey(0, 0), 2, 0)
    assert len(ring.harvest()) == entered
    vm.dirty.mark(SlotKey(0, 0), 2, 0)
    assert not ring.harvest()
