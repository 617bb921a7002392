"""A batch in one call is left to the phases of an update wherever something else follows slots, from the lock on.

What another thread did before it gave ``slots_lock`` back must be seen by who takes it then: here it is done by the
lock itself, as it is taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.compare.logs import LoggedEngine
from guestmem.designs import find
from guestmem.engines.listeners import Attached, MapListener
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft.engine import FLUX_MAX
from guestmem.engines.soft.pre_fault import pre_fault_memory
from guestmem.gmem import GuestMemfd
from guestmem.memslots import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, Change
from guestmem.vm import VhostMap, Vm

PAGE, HVA = 4096, 0x7F0000000000
SPLIT = [Change(0), Change(0, 0, 8, HVA), Change(1, 8, 8, HVA + 8 * PAGE)]


class Lock:
    """A lock before which something happens once, and that nobody waits for in the thread that has it."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self._lock, self._before = threading.Lock(), [before]

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        del blocking, timeout
        while self._before:
            self._before.pop()()
        assert self._lock.acquire(blocking=False), "it waits for itself"
        return True

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_exception: object) -> None:
        self.release()


def a_listener(engine: SoftEngine) -> None:
    engine.listeners.append(Attached(VhostMap()))


def a_log(engine: SoftEngine) -> None:
    engine.set_memory_region(Change(0, 0, 16, HVA, KVM_MEM_LOG_DIRTY_PAGES))


def a_file(engine: SoftEngine) -> None:
    engine.take_files([GuestMemfd(16 * PAGE, 0)])
    engine.set_memory_region(Change(0))
    engine.set_memory_region(Change(0, 0, 16, HVA, KVM_MEM_GUEST_MEMFD, guest_memfd=1))


@pytest.mark.parametrize("what", [a_listener, a_log, a_file])
def test_what_comes_before_the_lock_is_had(what: Callable[[SoftEngine], None]) -> None:
    with SoftEngine(1) as engine:
        engine.short_cut = True
        engine.set_memory_region(Change(0, 0, 16, HVA))
        engine.memslots.slots_lock = Lock(lambda: what(engine))  # type: ignore[assignment]
        before = list(engine.memslots)
        assert not engine.at_once(SPLIT)
        now = list(engine.memslots)
        assert [slot.npages for slot in now] == [slot.npages for slot in before] == [16]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [Change(0), Change(0, 0, 1 << 64, HVA)],
        [Change(0, as_id=5)],
        [Change(0), Change(0, 0, 16, HVA, as_id=1)],
        [Change(0), Change(7)],
        [Change(0), Change(0, 0, 16, HVA, KVM_MEM_LOG_DIRTY_PAGES)],
        [Change(0, 0, 16, HVA)],
    ],
    ids=["nothing", "no word", "no space", "two spaces", "refused", "logs", "as it is"],
)
def test_what_it_leaves_alone(changes: list[Change]) -> None:
    with SoftEngine(1, address_spaces=2) as engine:
        engine.short_cut = True
        engine.set_memory_region(Change(0, 0, 16, HVA))
        generations = [engine.memslots.generation(as_id) for as_id in range(2)]
        assert not engine.at_once(changes)
        assert list(engine.memslots) == [Change(0, 0, 16, HVA).as_slot()]
        assert [engine.memslots.generation(as_id) for as_id in range(2)] == generations
        engine.memslots.check()
        assert engine.at_once(SPLIT)
        engine.memslots.check()


def test_vcpus_may_start_under_the_lock() -> None:
    """As a listener does that is told of the first memory."""
    with SoftEngine(1) as engine:
        engine.set_memory_region(Change(0, 0, 16, HVA))
        engine.memslots.slots_lock = Lock()  # type: ignore[assignment]
        with engine.update() as update:
            update.stage_all([Change(1, 100, 1, HVA)])
            engine.start()
            update.publish()
            update.settle()
        engine.stop()

        class Starts(MapListener):
            waits = True

            def commit(self, effects: Any) -> None:
                del effects
                engine.start()

        engine.listeners.append(Attached(Starts()))
        find("atomic").prepare(engine)(engine, [Change(2, 200, 1, HVA)])
        assert engine.running
        engine.stop()


def test_more_ranges_than_wait_at_once_are_for_the_phases() -> None:
    """As many as fit go by one call, one more by the phases: with the same end, and all in flux."""
    for ranges in (FLUX_MAX, FLUX_MAX + 1):
        with SoftEngine(1) as engine:
            engine.short_cut = True
            apply = find("atomic").prepare(engine)
            apply(engine, [Change(slot, 2 * slot, 1, HVA + 2 * slot * PAGE) for slot in range(ranges)])
            gone = [Change(slot) for slot in range(ranges)]
            assert engine.at_once(gone) == (ranges == FLUX_MAX)
            assert len(engine.memslots) == (0 if ranges == FLUX_MAX else ranges)
            engine.memslots.check()
            if ranges > FLUX_MAX:
                apply(engine, gone)
            assert len(engine.memslots) == 0
            assert engine.counts.ranges_in_flux == ranges


def test_what_was_faulted_in_before_is_taken_away() -> None:
    with Vm() as vm:
        vm.engine.short_cut = True
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        pre_fault_memory(vm.engine, 0, 0, 8 * PAGE)
        vm.memory.resize(0, 4 * PAGE)
        leaves = [vm.engine.stage2.tables[0].lookup(gfn * PAGE) is not None for gfn in range(8)]
        assert leaves == [True] * 4 + [False] * 4


@pytest.mark.compiled_only
def test_the_model_behind_a_log_follows() -> None:
    """``compare`` with logging: what passes engines on has a model of the slots, which only phases tell of a change."""

    class Nothing:
        def page(self, userspace_addr: int) -> None:
            raise AssertionError(hex(userspace_addr))

    with SoftEngine(1) as engine:
        engine.short_cut = True
        engine.set_memory_region(Change(0, 0, 16, HVA))
        logged = LoggedEngine(engine, Nothing(), keeps=True)  # type: ignore[arg-type]
        logged._changed([Change(0).key], keeps=True)
        logged._model.check()
        find("atomic").prepare(engine)(logged.of(SPLIT), SPLIT)
        assert list(engine.memslots) == [change.as_slot() for change in SPLIT[1:]]
        logged._model.check()
