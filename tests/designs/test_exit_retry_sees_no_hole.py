"""exit_retry on the software engine: accesses that find a hole wait for the update's end; real holes stay holes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from chance import until_met
from guestmem.compiled import INTERPRETED
from guestmem.designs import control, find
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.memslots import Change

PAGES = 16
UPDATES = 20 if INTERPRETED else 100


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory([(0x7F0000000000, 0x7F0000000000 + PAGES * 0x1000)])
    yield made
    made.close()


def total(engine: SoftEngine) -> dict[str, int]:
    every = engine.vcpu_counts()
    return {name: sum(counts[name] for counts in every) for name in every[0]}


def play(engine: SoftEngine, memory: HostMemory, design: str) -> dict[str, int]:
    slot = Change(0, 0, PAGES, memory.address)
    words = [memory.address + 0x1000 * page for page in range(PAGES)]
    apply = find(design).prepare(engine)
    engine.set_access(Access(writes=0.5, fetches=0.2))
    engine.set_memory_region(slot)
    before = sum(map(memory.word, words))
    engine.start()
    engine.set_load(Load([Target(word - memory.address, word, word, changed=True) for word in words]))
    for _ in range(UPDATES):
        with engine.window():
            apply(engine, [Change(0), slot])
        with engine.window(), engine.exits_held():  # the same, and slow enough to be met
            engine.set_memory_region(Change(0))
            time.sleep(0.001)
            engine.set_memory_region(slot)
        time.sleep(0.0005)
    engine.stop()
    counts = total(engine)
    counts["written"] = sum(map(memory.word, words)) - before
    return counts


def test_no_hole_nothing_lost_nobody_paused(memory: HostMemory) -> None:
    def held(_: int) -> int:
        with SoftEngine(2) as engine:
            counts = play(engine, memory, "exit_retry")
            assert engine.counts.pauses == 0
        assert counts["holes_read"] == counts["holes_write"] == counts["killed_fetches"] == 0
        assert counts["writes"] == counts["written"]
        return counts["exits_held"]

    until_met(held, "an access that fell into an update")


def test_without_it_holes_are_seen(memory: HostMemory) -> None:
    def holes(_: int) -> int:
        with SoftEngine(2) as engine:
            counts = play(engine, memory, "sequential")
        return counts["holes_read"] + counts["holes_write"] + counts["killed_fetches"]

    until_met(holes, "an access that fell into a hole")


def test_a_hole_that_no_update_made_is_a_hole(memory: HostMemory) -> None:
    """A fetch from nothing dies, and MMIO of a device is MMIO, while updates of other slots run."""
    slot = Change(0, 0, 1, memory.address)
    with SoftEngine(1) as engine:
        apply = find("exit_retry").prepare(engine)
        engine.set_access(Access(writes=0.3, fetches=0.3))
        engine.start()
        engine.set_load(Load([Target(0x200000, 0, 0)]))

        def seen(number: int) -> bool:
            apply(engine, [slot])
            apply(engine, [Change(0)])
            time.sleep(0.0005)
            counts = total(engine)
            return number >= UPDATES and all(counts[name] for name in ("internal_errors", "mmio_reads", "mmio_writes"))

        until_met(seen, "a fetch from nothing, and a read and a write of the device")
        engine.stop()


def test_stopping_ends_a_vcpu_that_waits_for_an_update(memory: HostMemory) -> None:
    slot = Change(0, 0, PAGES, memory.address)
    with SoftEngine(1) as engine:
        find("exit_retry").prepare(engine)
        engine.set_memory_region(slot)
        engine.start()
        engine.set_load(Load([Target(0, memory.address, memory.address, changed=True)]))
        with engine.exits_held():
            engine.set_memory_region(Change(0))
            time.sleep(0.05)
            engine.stop()


def test_the_design_to_be_caught_is_one_that_the_engine_can_do() -> None:
    with SoftEngine(1) as engine:
        assert control(engine).name == "atomic_unacknowledged"

        class Today(SoftEngine):
            capabilities = engine.capabilities & ~find("atomic").needs

        assert control(Today(1)).name == "sequential"
