"""A fault that no longer finds its range in flux finds the new set: tried at every moment of the update."""

from __future__ import annotations

from collections.abc import Sequence

from guestmem.explore import load
from guestmem.memslots import Change
from soft_guest import Inline

OLD, NEW = 0x10000, 0x90000
FILLED, IN_FLUX = 0, 4
NOTHING = 0

LOOKS_LATE = (
    (
        "engines/soft/vcpu.py",
        "    flux = load_acquire(vm, at.FLUX)\n    protected = False\n",
        (
            "    reader = own[at.READER]\n    srcu_enter(srcu, u64(0), reader)\n"
            "    record = find(memslots, own[at.AS_ID], gfn)\n    srcu_exit(srcu, u64(0), reader)\n"
            "    flux = load_acquire(vm, at.FLUX)\n    protected = False\n"
        ),
    ),
    (
        "engines/soft/vcpu.py",
        (
            "    reader = own[at.READER]\n    srcu_enter(srcu, u64(0), reader)\n"
            "    record = find(memslots, own[at.AS_ID], gfn)\n    outcome = HOLE\n"
        ),
        "    srcu_enter(srcu, u64(0), reader)\n    outcome = HOLE\n",
    ),
)
"""A fault that looks the slot up first and at FLUX afterwards."""


def faults(mutations: Sequence[tuple[str, str, str]] = (), *, backwards: bool = False) -> set[tuple[int, int]]:
    """(outcome, what the TLB holds) of a fault, over all moments of it at which the update can go on.

    The vCPU has acknowledged the flush: its range is in flux, its TLB empty. Then the set is published at one moment
    and the range released at the same or a later one (``backwards``: the other way round).
    """
    found = set()
    with load(mutations) as twin:
        soft, vcpu, atomics = twin.room("engines.soft"), twin.room("engines.soft.vcpu"), twin.room("atomics")
        tlb = twin.room("engines.soft.tlb")

        def fault(first: int, second: int) -> int:
            """One fault; returns how many operations it took."""
            engine = soft.SoftEngine(1)
            engine.set_memory_region(Change(0, 0, 1, OLD))
            mine = engine._own[0]
            with engine.update() as update:
                update.stage_all([Change(0), Change(0, 0, 1, NEW)])
                update.stall(update.net_effect())
                steps = [update.release, update.publish] if backwards else [update.publish, update.release]

                def between(operation: int) -> None:
                    for moment, step in zip((first, second), steps, strict=True):
                        if operation == moment:
                            step()

                scheduler = Inline(between)
                with atomics.schedule(scheduler):
                    outcome = vcpu.fault(engine._vm, engine.memslots.words, engine.srcu.words, mine, 0, True)
                found.add((outcome, tlb.tlb_lookup(mine, 0, False)))
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
