"""A reset write-protects the pages that harvested entries name; entries of what is gone are counted, and dropped."""

from __future__ import annotations

import pytest

from abi_words import ARENA, EINVAL, OK, PAGE, Ask
from guestmem import MemslotError
from guestmem.abi.checks import Host
from guestmem.abi.structures import EnableCap, MemoryIoctl, MemoryRegion
from guestmem.abi.versions import VERSIONS, KernelVersion
from guestmem.atomics import peek, poke
from guestmem.dirty import DirtyEntry, DirtyRing
from guestmem.dirty.ring import DIRTY_INDEX, RESET_INDEX, ring_size
from guestmem.memslots import SlotKey
from guestmem.vm import KvmModel

RING = 192


def entered(ask: Ask, *pages: int) -> bool:
    """Whether writes to these pages are entered: whether they were protected."""
    for page in pages:
        ask("write", page * PAGE, 1)
    found = set(ask("harvest").exits)
    assert found in ({f"0x0+{page:#x}" for page in pages}, set())
    return bool(found)


def test_only_what_was_harvested_is_given_back(ringed: Ask) -> None:
    ringed("write", 0, 3)
    assert ringed("reset").result == OK  # nothing was harvested
    assert entered(ringed, 0, 1, 2)  # these very entries
    assert ringed("reset").result == OK
    assert entered(ringed, 1)
    assert ringed("reset").result == OK


def test_entries_of_a_slot_that_went_are_counted_and_dropped(ringed: Ask) -> None:
    assert entered(ringed, 0, 7)
    assert ringed("region", 0, 0, 0, 0, 0).result == OK
    assert ringed("reset").result == OK  # the answer is as many as were harvested
    assert ringed("region", 0, 1, 0, 0x100000, ARENA).result == OK
    assert entered(ringed, 7)


def test_entries_past_the_end_of_a_smaller_slot_are_dropped(ringed: Ask) -> None:
    assert entered(ringed, 1, 200)
    assert ringed("region", 0, 0, 0, 0, 0).result == OK
    assert ringed("region", 0, 1, 0, 4 * PAGE, ARENA).result == OK
    assert ringed("reset").result == OK
    assert entered(ringed, 1)


def test_a_move_has_pages_entered_again(ringed: Ask) -> None:
    """All translations go with it, those of other slots, too."""
    assert ringed("region", 1, 1, 0x200000, PAGE, ARENA).result == OK
    assert entered(ringed, 3)
    assert not entered(ringed, 3)
    assert ringed("region", 1, 1, 0x300000, PAGE, ARENA).result == OK
    assert entered(ringed, 3)
    assert not entered(ringed, 3)


def test_a_move_refused_at_the_last_step_has_thrown_all_translations_away(ringed: Ask) -> None:
    """Step 22: the slot is as it was, and only the generation and the translations tell."""
    assert entered(ringed, 3)
    assert ringed("region", 0, 1, (1 << 52) - PAGE, 0x100000, ARENA).result == EINVAL
    assert entered(ringed, 3)
    assert ringed("region", 1, 1, 0, PAGE, ARENA).result == -17  # it still has its frames
    assert not entered(ringed, 3)


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_an_offset_that_wraps_is_dropped_or_not(version: KernelVersion) -> None:
    """User space can write anything into entries it harvests: the last page of all and page 0 become one run."""
    vm = KvmModel(Host(version=version))
    vm.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(RING, 0, 4096).pack())
    vm.ioctl(MemoryIoctl.CREATE_VCPU, 0)
    vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, MemoryRegion(0, 1, 0, 4 * PAGE, 0).pack())
    ring = vm.dirty.rings[0]
    assert ring is not None
    vm.dirty.mark(SlotKey(0, 0), 0, 0)
    assert vm.dirty.writable == {(SlotKey(0, 0), 0)}
    ring.harvest()
    ring.words = DirtyRing(256).words  # that entry is taken away: user space can write what it likes
    ring._next = 0
    ring.push(0, (1 << 64) - 1)
    ring.push(0, 0)
    assert len(ring.harvest()) == 2
    assert vm.ioctl(MemoryIoctl.RESET_DIRTY_RINGS) == 2
    assert ((SlotKey(0, 0), 0) in vm.dirty.writable) is version.ring_reset_is_overflow_safe


def test_the_reserve_is_larger_where_the_hardware_logs() -> None:
    """64 entries, and PML's 512 on top: 8192 bytes are then too few, and soft full comes earlier."""
    with pytest.raises(MemslotError, match="are less than 0x2400") as caught:
        KvmModel(Host(pml=True)).ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(RING, 0, 8192).pack())
    assert caught.value.errno == -EINVAL
    for pml, soft_limit in ((False, 960), (True, 448)):
        vm = KvmModel(Host(pml=pml))
        vm.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(RING, 0, 16384).pack())
        vm.ioctl(MemoryIoctl.CREATE_VCPU, 3)
        ring = vm.dirty.rings[3]
        assert ring is not None
        assert (ring.size, ring.soft_limit) == (1024, soft_limit)
        assert [ring.push(0, page) for page in range(soft_limit)].index(True) == soft_limit - 1
    assert ring_size(1 << 20) == 65536


def test_indices_are_words_of_32_bits() -> None:
    ring = DirtyRing(8, reserved=2)
    start = (1 << 32) - 3
    poke(ring.words, int(DIRTY_INDEX), start)
    poke(ring.words, int(RESET_INDEX), start)
    ring._next = start
    for turn in range(3):
        pages = [10 * turn + page for page in range(4)]
        assert [ring.push(1, page) for page in pages] == [False] * 4
        assert (ring.used, ring.soft_full) == (4, False)
        assert ring.harvest() == [DirtyEntry(1, page) for page in pages]
        assert ring.reset()[0] == 4
        assert ring.used == 0
        wanted = (start + 4 * (turn + 1)) % (1 << 32)
        assert peek(ring.words, int(DIRTY_INDEX)) == peek(ring.words, int(RESET_INDEX)) == wanted
        ring.check()


def test_user_space_may_harvest_without_the_dirty_bit() -> None:
    """Only the second bit of the flags is looked at; an entry whose neighbour before it has none has to wait."""
    ring = DirtyRing(8, reserved=2)
    for page in range(3):
        ring.push(1, page)
    poke(ring.words, 16, 1 << 32 | 2)
    poke(ring.words, 16 + 4, 1 << 32 | 3)
    assert ring.reset()[0] == 1  # the second is still dirty, so the third waits
    poke(ring.words, 16 + 2, 1 << 32 | 3)
    assert ring.reset()[0] == 2
    assert ring.used == 0
