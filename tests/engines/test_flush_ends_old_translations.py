"""Once flush() has returned, no vCPU uses a translation from before it; kicks are acknowledged, however many vCPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType

import pytest

from guestmem.atomics import peek
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.explore import load
from guestmem.memslots import Change
from soft_guest import HVA, PAGE, Guest, until

WRITES = Access(writes=1, fetches=0)


def rehost(guest: Guest, page: int) -> None:
    """Slot 0 becomes another host page in one swap; nobody is stalled or flushed."""
    with guest.engine.update() as update:
        update.stage_all([guest.change(0), guest.change(0, 0, 1, page)])
        update.publish()
        update.settle()


@pytest.mark.parametrize("vcpus", [1, 2, 4, 8])
def test_after_a_flush_the_old_page_stands_still(vcpus: int, sized: Callable[[int, int], int]) -> None:
    rounds = sized(200, 6)
    with Guest(vcpus, access=WRITES) as guest:
        guest.create(0, 0, 1, 0)
        guest.run(guest.same({0: 0}))
        for number in range(rounds):
            old, new = number % 2, 1 - number % 2
            rehost(guest, new)
            guest.engine.flush(wait=True)
            before = guest.word(old), guest.word(new)
            guest.engine.kick()
            assert guest.word(old) == before[0], f"round {number}"
            until(lambda new=new, was=before[1]: guest.word(new) != was, "a write to the new page")  # type: ignore[misc]
        guest.engine.stop()
        assert guest.total("writes") == guest.word(0) + guest.word(1)
    assert guest.engine.counts.flushes == rounds


@pytest.mark.parametrize("vcpus", [1, 2, 4, 8])
def test_kicks_are_acknowledged(vcpus: int, sized: Callable[[int, int], int]) -> None:
    kicks = sized(2000, 20)
    with Guest(vcpus, access=Access()) as guest:
        guest.create(0, 0, 8, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(8)}))
        requests = [peek(guest.engine._vm, word(vcpu, at.REQUESTED)) for vcpu in range(vcpus)]
        before = guest.engine.counts.kicks
        for _ in range(kicks):
            guest.engine.kick()
        for vcpu in range(vcpus):
            wanted = requests[vcpu] + kicks
            assert peek(guest.engine._vm, word(vcpu, at.REQUESTED)) == wanted
            # One that was outside carries them out when it comes in.
            until(lambda v=vcpu, w=wanted: peek(guest.engine._vm, word(v, at.DONE)) == w, "DONE")  # type: ignore[misc]
    assert guest.engine.counts.kicks - before == kicks * vcpus
    assert peek(guest.engine._vm, int(at.WAITING)) == 0


def word(vcpu: int, field: int) -> int:
    return int(at.VCPUS) + int(at.VCPU) * vcpu + int(field)


def test_kicks_from_two_threads_are_acknowledged(sized: Callable[[int, int], int]) -> None:
    kicks = sized(1000, 10)
    with Guest(2, access=Access()) as guest:
        guest.create(0, 0, 8, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(8)}))

        def flushes() -> None:
            for _ in range(kicks):
                guest.engine.flush(wait=True)

        other = threading.Thread(target=flushes, daemon=True)
        other.start()
        flushes()
        other.join(60)
        assert not other.is_alive()
        assert guest.engine.counts.flushes >= kicks, "both threads count, without a lock"
    assert peek(guest.engine._vm, int(at.WAITING)) == 0


def old_page_stands_still(room: Callable[[str], ModuleType]) -> bool:
    """One re-hosting on an interpreted copy; whether the old page stands still after the flush."""
    soft = room("engines.soft")
    memory = HostMemory([(HVA, HVA + 2 * PAGE)])
    pages = [memory.translate(HVA + page * PAGE) for page in range(2)]
    engine: SoftEngine = soft.SoftEngine(1)
    engine.set_access(room("engines").Access(writes=1, fetches=0))
    engine.set_memory_region(Change(0, 0, 1, pages[0]))
    try:
        engine.start()
        engine.set_load(room("engines").Load([room("engines").Target(0, pages[0], pages[0])]))
        until(lambda: memory.word(pages[0]) > 0, "a write")
        with engine.update() as update:
            update.stage_all([Change(0), Change(0, 0, 1, pages[1])])
            update.publish()
            update.settle()
        engine.flush(wait=True)
        before = memory.word(pages[0]), memory.word(pages[1])
        until(lambda: (memory.word(pages[0]), memory.word(pages[1])) != before, "another write")
        return memory.word(pages[0]) == before[0]
    finally:
        engine.stop()
        memory.close()


def test_a_vcpu_that_does_not_flush_is_seen() -> None:
    with load() as twin:
        assert old_page_stands_still(twin.room)
    forgets = "            forget(shape, tlb, what, start, end)\n            seen"
    with load([("stage2/tlb_walk.py", forgets, "            seen")]) as twin:
        assert not old_page_stands_still(twin.room)


def test_the_load_arrives_with_a_kick() -> None:
    """set_load() returns only when nobody works on the load before."""
    with Guest(2, access=WRITES) as guest:
        guest.create(0, 0, 2, 0)
        guest.run(guest.same({0: 0}))
        for number in range(20):
            here, gone = (number + 1) % 2, number % 2
            guest.engine.set_load(Load([Target(here * PAGE, guest.hva(here), guest.hva(here))]))
            before = guest.word(gone)
            guest.engine.kick()
            assert guest.word(gone) == before
