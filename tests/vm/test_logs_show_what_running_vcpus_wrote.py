"""``vm.dirty_log`` shows what the software engine's vCPU threads wrote, whatever becomes of the slots meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from guestmem.compiled import INTERPRETED
from guestmem.engines import Access, Load, Target
from guestmem.vm import Vm, Write

PAGE = 0x1000
PAGES = 96
LOGGED = 1


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not true():
        assert time.monotonic() < end
        time.sleep(0.0005)


class Guest:
    """A VM whose vCPU threads increment a counter in pages, and a copy of these that follows the logs."""

    def __init__(self, vcpus: int = 2, **options: bool) -> None:
        self.vm = Vm(vcpus, **options)  # type: ignore[call-overload] # manual_protect, initially_set
        self.manual = bool(options)
        self.host = self.vm.memory.create(0, gpa=0, size=PAGES * PAGE, flags=LOGGED).userspace_addr
        self.vm.engine.set_access(Access(writes=0.9, fetches=0))
        self.copy = self.words()

    def words(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
        return np.frombuffer(self.vm.memory.host_read(self.host, PAGES * PAGE), np.uint64)[:: PAGE // 8].copy()

    def touch(self, pages: dict[int, int]) -> None:
        """vCPUs write to these frames from now on: frame to page of the memory."""
        hosts = [(gfn, self.host + page * PAGE) for gfn, page in pages.items()]
        self.vm.engine.set_load(Load([Target(gfn * PAGE, host, host) for gfn, host in hosts]))

    def writes(self) -> int:
        return sum(counts["writes"] for counts in self.vm.engine.vcpu_counts())

    def moves(self, count: int = 50) -> None:
        goal = self.writes() + count
        until(lambda: self.writes() >= goal)

    def take(self, slot: int, first: int) -> set[int]:
        """Take the log of a slot whose memory begins with page ``first``, and copy what it names."""
        log = self.vm.dirty_log(slot)
        if self.manual:
            self.vm.clear_dirty_log(slot, log)
        pages = {first + int(page) for page in log.nonzero()[0]}
        words = self.words()
        for page in pages:
            self.copy[page] = words[page]
        return pages

    def lost(self) -> list[int]:
        return [int(page) for page in (self.copy != self.words()).nonzero()[0]]


@pytest.fixture(params=["plain", "manual", "all ones"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    options = {"plain": {}, "manual": {"manual_protect": True}, "all ones": {"initially_set": True}}[request.param]
    made = Guest(**options)
    yield made
    made.vm.close()


def test_every_write_is_in_a_log(guest: Guest, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    pages = rng.sample(range(PAGES), 40)
    guest.touch({page: page for page in pages})
    guest.vm.engine.start()
    named: set[int] = set()
    for _ in range(sized(30, 4)):
        guest.moves()
        named |= guest.take(0, 0)
    guest.vm.engine.stop()
    named |= guest.take(0, 0)
    assert guest.lost() == []
    if not guest.vm.model.dirty.initially_set:
        assert named <= set(pages)
    guest.vm.engine.dirty.check()
    guest.vm.check()


def test_bits_live_through_atomic_transactions(
    guest: Guest, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    """The slot is split, merged, re-hosted and moved under writing vCPUs: each write is in a log, or handed back."""
    half = PAGES // 2
    guest.touch({page: page for page in range(half)})
    guest.vm.engine.start()
    moved = False
    for turn in range(sized(24, 4)):
        guest.moves()
        whole = guest.host
        with guest.vm.memory.transaction() as change:
            if turn % 2 == 0:
                change.delete(0)
                change.create(1, gpa=0, size=half * PAGE, host=whole, flags=LOGGED)
                gpa = (half + (1024 if moved else 0)) * PAGE
                change.create(2, gpa=gpa, size=half * PAGE, host=whole + half * PAGE, flags=LOGGED)
                moved = not moved
            else:
                change.delete(1)
                change.delete(2)
                change.create(0, gpa=0, size=PAGES * PAGE, host=whole, flags=LOGGED)
        for page in change.dirty:
            at = (page.userspace_addr - whole) // PAGE
            guest.copy[at] = guest.words()[at]
        guest.moves()
        if rng.random() < 0.5:
            for slot in guest.vm.memory:
                guest.take(slot.id, (slot.userspace_addr - whole) // PAGE)
    guest.vm.engine.stop()
    for slot in guest.vm.memory:
        guest.take(slot.id, (slot.userspace_addr - guest.host) // PAGE)
    assert guest.lost() == []
    guest.vm.engine.dirty.check()
    guest.vm.check()
    counts = guest.vm.engine.vcpu_counts()
    assert sum(each[name] for each in counts for name in ("stale", "strange", "holes_write", "holes_read")) == 0


def test_bits_are_kept_by_a_move_and_by_a_change_of_flags() -> None:
    guest = Guest(1)
    with guest.vm as vm:
        guest.touch({3: 3})
        vm.engine.start()
        guest.moves(5)
        vm.engine.stop()
        vm.memory.move(0, 1024 * PAGE)  # KVM_SET_USER_MEMORY_REGION: the log goes with the slot
        with vm.memory.transaction() as change:
            change.move(0, 2048 * PAGE)
        with vm.memory.transaction() as change:  # the same host pages elsewhere, beside a new slot
            change.set_flags(0, LOGGED)
            change.create(1, gpa=0, size=PAGE, flags=LOGGED)
        assert [*vm.dirty_log(0).nonzero()[0], change.dirty] == [3, []]
        assert not vm.dirty_log(1).any()
        vm.check()


def test_logging_that_ends_in_a_transaction_hands_its_bits_back() -> None:
    guest = Guest(1)
    with guest.vm as vm:
        guest.touch({3: 3, 4: 4})
        vm.engine.start()
        until(lambda: bool(guest.words()[3] and guest.words()[4]))
        with vm.memory.transaction() as change:
            change.set_flags(0, 0)
        assert {page.gfn for page in change.dirty} == {3, 4}
        guest.moves(20)
        with vm.memory.transaction() as change:
            change.set_flags(0, LOGGED)
        vm.engine.stop()
        guest.copy = guest.words()
        vm.dirty_log(0)
        vm.engine.start()
        guest.moves(20)
        vm.engine.stop()
        guest.take(0, 0)
        assert guest.lost() == []


def test_accesses_by_hand_and_by_threads_share_one_log() -> None:
    guest = Guest(1)
    with guest.vm as vm:
        vm.vcpus[0].load([Write(9 * PAGE, b"w")])
        vm.vcpus[0].run()
        guest.touch({3: 3})
        vm.engine.start()
        guest.moves(5)
        vm.engine.stop()
        assert vm.dirty_log(0).nonzero()[0].tolist() == [3, 9]


@pytest.mark.skipif(INTERPRETED, reason="the same in both forms")
def test_translations_that_stopped_vcpus_left_go_with_their_slot() -> None:
    guest = Guest(1)
    with guest.vm as vm:
        vm.memory.set_flags(0, 0)
        vm.memory.create(9, gpa=1 << 30, size=PAGES * PAGE, host=guest.host)  # keeps the memory
        guest.touch({3: 3})
        vm.engine.start()
        guest.moves(5)
        vm.engine.stop()
        vm.memory.delete(0)
        vm.memory.create(0, gpa=0, size=8 * PAGE, host=guest.host + 8 * PAGE)
        before = guest.words()
        guest.touch({3: 11})
        vm.engine.start()
        guest.moves(20)
        vm.engine.stop()
        assert (guest.words() != before).nonzero()[0].tolist() == [11]
