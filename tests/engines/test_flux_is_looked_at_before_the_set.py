"""A fault that no longer finds its range in flux finds the new set: tried at every moment of the update."""

from __future__ import annotations

from collections.abc import Sequence

from guestmem.explore import load
from guestmem.explore.small_vm import SMALL
from guestmem.memslots import Change
from soft_guest import Inline, fault_of, host_of

OLD, NEW = 0x10000, 0x90000
FILLED, IN_FLUX = 0, 4
NOTHING = 0

LOOKS_LATE = (
    (
        "engines/soft/user_mem_abort.py",
        "    flux = load_acquire(vm, at.FLUX)\n    stalls_writes = False\n",
        (
            "    reader = own[at.READER]\n    srcu_enter(srcu, _ZERO, reader)\n"
            "    record = find(memslots, own[at.AS_ID], gfn)\n    srcu_exit(srcu, _ZERO, reader)\n"
            "    flux = load_acquire(vm, at.FLUX)\n    stalls_writes = False\n"
        ),
    ),
    (
        "engines/soft/user_mem_abort.py",
        (
            "    reader = own[at.READER]\n    srcu_enter(srcu, _ZERO, reader)\n"
            "    record = find(memslots, own[at.AS_ID], gfn)\n    outcome = HOLE\n"
        ),
        "    srcu_enter(srcu, _ZERO, reader)\n    outcome = HOLE\n",
    ),
)
"""A fault that looks the slot up first and at FLUX afterwards."""


def faults(mutations: Sequence[tuple[str, str, str]] = (), *, backwards: bool = False) -> set[tuple[int, int]]:
    """(outcome, where a read then goes) of a fault, over all moments of it at which the update can go on.

    The range is in flux and zapped. Then the set is published at one moment and the range released at the same or a
    later one (``backwards``: the other way round).
    """
    found = set()
    with load([*SMALL, *mutations]) as twin:
        soft, atomics = twin.room("engines.soft"), twin.room("atomics")

        def fault(first: int, second: int) -> int:
            """One fault; returns how many operations it took."""
            engine = soft.SoftEngine(1)
            engine.set_memory_region(Change(0, 0, 1, OLD))
            with engine.update() as update:
                update.stage_all([Change(0), Change(0, 0, 1, NEW)])
                update.stall(update.net_effect())
                steps = [update.release, update.publish] if backwards else [update.publish, update.release]

                def between(operation: int) -> None:
                    for moment, step in zip((first, second), steps, strict=True):
                        if operation == moment:
                            step()

                scheduler = Inline(between, of=(engine.words, engine.memslots.words))  # all that the update writes
                with atomics.schedule(scheduler):
                    outcome = fault_of(twin.room, engine, 0, writes=True)
                found.add((outcome, host_of(twin.room, engine, 0)))
            return scheduler.operations

        most = 1
        first = 0
        while first <= most:
            second = first
            while second <= most:
                most = max(most, fault(first, second))
                second += 1
            first += 1
    return found


def test_a_fault_waits_or_finds_the_new_memory() -> None:
    assert faults() == {(IN_FLUX, NOTHING), (FILLED, NEW)}


def test_looking_at_flux_after_the_set_is_caught() -> None:
    assert (FILLED, OLD) in faults(LOOKS_LATE)


def test_releasing_before_publishing_is_caught() -> None:
    assert (FILLED, OLD) in faults(backwards=True)
