"""What each design of the debate gives, and what it is known to lack; each made certain, not waited for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.memslots import Change
from holes_held_open import count, in_the_hole, wait_until

PAGES = 16
READ = Access(writes=0, fetches=0)


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory([(0x7F0000000000, 0x7F0000000000 + 2 * PAGES * 0x1000)])
    yield made
    made.close()


def slot(memory: HostMemory, number: int, gfn: int, npages: int, page: int) -> Change:
    return Change(number, gfn, npages, memory.address + (page << 12))


def load(memory: HostMemory, frames: Sequence[int]) -> Load:
    """Frames that have the host page of their number before and after."""
    return Load(
        [Target(gfn << 12, word, word, changed=True) for gfn in frames for word in [memory.address + (gfn << 12)]]
    )


def running(engine: SoftEngine, memory: HostMemory, access: Access = READ) -> None:
    """One slot of all pages, and vCPUs that touch all of it and have translations."""
    engine.set_memory_region(slot(memory, 0, 0, PAGES, 0))
    engine.set_access(access)
    engine.start()
    engine.set_load(load(memory, range(PAGES)))
    wait_until(engine, lambda: count(engine, "accesses") > 1000, "a thousand accesses")


SPLIT = "one slot becomes two"


def split(memory: HostMemory) -> list[Change]:
    return [Change(0), slot(memory, 1, 0, 4, 0), slot(memory, 2, 4, PAGES - 4, 4)]


@pytest.mark.parametrize(
    ("access", "waits", "falls"),
    [
        (Access(writes=0, fetches=1), "exits_held", ""),
        (READ, "", "holes_read"),
        (Access(writes=1, fetches=0), "", "holes_write"),
    ],
    ids=["fetches", "reads", "writes"],
)
def test_mmio_retry_saves_fetches_alone(memory: HostMemory, access: Access, waits: str, falls: str) -> None:
    with SoftEngine(1) as engine:
        running(engine, memory, access)
        apply = find("mmio_retry").prepare(engine)
        met = ("exits_held", "holes_read", "holes_write", "killed_fetches")  # whichever it is: one vCPU may be held
        in_the_hole(engine, lambda: any(count(engine, name) for name in met), "an access in the hole")
        apply(engine, [Change(0), slot(memory, 0, 0, PAGES, 0)])
        engine.stop()
        assert count(engine, "killed_fetches") == 0
        assert (count(engine, "holes_read") + count(engine, "holes_write") > 0) == bool(falls)
        assert (count(engine, "exits_held") > 0) == bool(waits)


def test_exit_retry_undoes_it(memory: HostMemory) -> None:
    """The design after it holds all exits again."""
    with SoftEngine(1) as engine:
        running(engine, memory)
        find("mmio_retry").prepare(engine)
        apply = find("exit_retry").prepare(engine)
        in_the_hole(engine, lambda: count(engine, "exits_held") > 0, "an access in the hole")
        apply(engine, [Change(0), slot(memory, 0, 0, PAGES, 0)])
        engine.stop()
        assert count(engine, "holes_read") == 0


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_user_exit_needs_no_retry_of_invalid_slots(memory: HostMemory, arch: str) -> None:
    with SoftEngine(1, arch=arch) as engine:
        running(engine, memory)
        apply = find("user_exit").prepare(engine)
        real, held = engine.flush_shadow, "invalid_retries" if arch == "x86" else "exits_held"

        def flushed(as_id: int, gone: Sequence[tuple[int, int]], protected: Sequence[tuple[int, int]]) -> None:
            real(as_id, gone, protected)
            wait_until(engine, lambda: count(engine, held) > 0, "an access between the swaps")

        engine.flush_shadow = flushed  # type: ignore[method-assign]
        apply(engine, split(memory))
        engine.stop()
        assert count(engine, "holes_read") == count(engine, "killed_fetches") == 0


def test_batch_needs_it(memory: HostMemory) -> None:
    with SoftEngine(1, arch="arm64") as engine:
        running(engine, memory)
        apply = find("batch").prepare(engine)
        real = engine.flush_shadow

        def flushed(as_id: int, gone: Sequence[tuple[int, int]], protected: Sequence[tuple[int, int]]) -> None:
            real(as_id, gone, protected)
            wait_until(engine, lambda: count(engine, "holes_read") > 0, "an access between the swaps")

        engine.flush_shadow = flushed  # type: ignore[method-assign]
        apply(engine, split(memory))
        engine.stop()
        assert count(engine, "holes_read") > 0


@pytest.mark.parametrize("design", ["primitives", "atomic"])
def test_a_split_costs_vcpus_nothing(memory: HostMemory, design: str) -> None:
    with SoftEngine(1) as engine:
        running(engine, memory)
        apply = find(design).prepare(engine)
        before = engine.counts.copy()
        apply(engine, split(memory))
        spent = engine.counts - before
        engine.stop()
        assert (spent.zaps, spent.ranges_in_flux, spent.pauses) == (0, 0, 0)
        assert count(engine, "holes_read") == 0
        assert sorted(slot.id for slot in engine.memslots) == [1, 2]


@pytest.mark.parametrize(
    ("design", "falls"), [("primitives", False), ("resize_notify", True), ("sequential", True)], ids=str
)
def test_resize_notify_knows_no_split(memory: HostMemory, design: str, falls: bool) -> None:
    with SoftEngine(1) as engine:
        running(engine, memory)
        apply = find(design).prepare(engine)
        in_the_hole(engine, lambda: count(engine, "holes_read") > 0, "a read in the hole")
        apply(engine, split(memory))
        engine.stop()
        assert (count(engine, "holes_read") > 0) == falls


@pytest.mark.parametrize("design", ["primitives", "resize_notify"])
def test_memory_that_changes_behind_a_frame_is_no_primitive(memory: HostMemory, design: str) -> None:
    with SoftEngine(1) as engine:
        running(engine, memory)
        apply = find(design).prepare(engine)
        in_the_hole(engine, lambda: count(engine, "mmio_reads") + count(engine, "holes_read") > 0, "a read in the hole")
        apply(engine, [Change(0), slot(memory, 0, 0, PAGES, PAGES)])
        engine.stop()
        assert count(engine, "holes_read") > 0


def test_resize_notify_grows_without_a_hole(memory: HostMemory) -> None:
    with SoftEngine(1) as engine:
        running(engine, memory)
        apply = find("resize_notify").prepare(engine)
        before = engine.counts.copy()
        apply(engine, [Change(0), slot(memory, 0, 0, 2 * PAGES, 0)])
        engine.stop()
        assert (engine.counts - before).zaps == 0
        assert count(engine, "holes_read") == 0


def test_kick_all_stops_everybody_and_has_no_hole(memory: HostMemory) -> None:
    with SoftEngine(2) as engine:
        running(engine, memory)
        apply = find("kick_all").prepare(engine)
        before = engine.counts.copy()
        apply(engine, split(memory))
        engine.stop()
        assert (engine.counts - before).pauses == 1
        assert count(engine, "holes_read") == 0


def test_replace_all_takes_the_translations_of_what_does_not_change(memory: HostMemory) -> None:
    with SoftEngine(1) as engine:
        running(engine, memory)
        apply = find("replace_all").prepare(engine)
        before = engine.counts.copy()
        apply(engine, [slot(memory, 7, 1024, 1, PAGES)])  # elsewhere
        engine.stop()
        assert (engine.counts - before).zaps > 0
        assert count(engine, "holes_read") == 0
