"""With stage 2, what vCPUs use was built by their own faults; updates zap and protect what changes and keep the rest;
and no vCPU uses an entry that an invalidation has taken."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.compiled import INTERPRETED
from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft.stage2 import Stage2
from guestmem.errors import UsageError
from guestmem.explore import load
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Change
from guestmem.stage2.table import DISCIPLINES
from soft_guest import HVA, PAGE, Guest, until

BLOCK_PAGES = 512
READS, WRITES = Access("sequential", 0, 0), Access("sequential", 1, 0)
MOST_ROUNDS = 2000
"""Of updates, each of which has an access of each vCPU at least."""


def guest(vcpus: int = 2, pages: int = 64, access: Access = WRITES, **options: Any) -> Guest:
    return Guest(vcpus, pages, access, strict=True, **options)


def tables_of(engine: SoftEngine) -> Stage2:
    """Its stage 2."""
    assert engine.stage2 is not None
    return engine.stage2


def levels(engine: SoftEngine, targets: list[Target]) -> set[int | None]:
    """Levels of the leaves for all targets."""
    found = [tables_of(engine).tables[0].lookup(target.gpa) for target in targets]
    return {None if each is None else each.level for each in found}


def level_of(g: Guest, gfn: int) -> int | None:
    """Level of the leaf for a frame; None if there is none. While no vCPU runs."""
    found = tables_of(g.engine).tables[0].lookup(gfn << 12)
    return None if found is None else found.level


def sound(g: Guest) -> None:
    """Stop the vCPUs; tables and TLBs are what they should be."""
    g.engine.stop()
    assert tables_of(g.engine).findings == 0
    tables_of(g.engine).check()


def large(arch: str = "x86", access: Access = WRITES) -> tuple[SoftEngine, HostMemory, list[Target]]:
    """An engine with a slot of 4 MiB on memory that large pages fit, and its targets, one in 64 frames."""
    memory = HostMemory([(HVA, HVA + 2 * BLOCK_PAGES * PAGE)], low=True)
    engine = SoftEngine(1, arch=arch, strict=True)
    engine.set_access(access)
    base = memory.translate(HVA)
    assert base % (1 << 21) == 0
    assert base < 1 << 40
    engine.set_memory_region(Change(0, 0, 2 * BLOCK_PAGES, base))
    frames = range(0, 2 * BLOCK_PAGES, 64)
    return engine, memory, [Target(gfn << 12, base + (gfn << 12), base + (gfn << 12)) for gfn in frames]


def touch_all(engine: SoftEngine, targets: list[Target]) -> None:
    """Every target is accessed at least once from now on."""
    engine.set_load(Load(targets))
    goal = engine.vcpu_counts()[0]["accesses"] + 4 * len(targets)
    until(lambda: engine.vcpu_counts()[0]["accesses"] >= goal, "accesses")


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_faults_map_the_largest_leaf_that_fits(arch: str) -> None:
    engine, memory, targets = large(arch)
    with engine:
        engine.start()
        touch_all(engine, targets)
        engine.stop()
        counts = engine.vcpu_counts()[0]
        assert counts["stage2_faults"] == counts["mapped_blocks"] == 2
        assert levels(engine, targets) == {2}
        tables_of(engine).check()
    memory.close()


def test_logging_maps_pages_and_marks_each_once() -> None:
    engine, memory, targets = large()
    with engine:
        engine.start()
        touch_all(engine, targets)
        base = memory.translate(HVA)
        engine.set_memory_region(Change(0, 0, 2 * BLOCK_PAGES, base, KVM_MEM_LOG_DIRTY_PAGES))
        touch_all(engine, targets)
        engine.stop()
        assert engine.vcpu_counts()[0]["dirty_marks"] == len(targets)
        assert levels(engine, targets) == {3}
        engine.start()
        engine.set_memory_region(Change(0, 0, 2 * BLOCK_PAGES, base))
        engine.flush(wait=True)
        touch_all(engine, targets)
        engine.stop()
        assert levels(engine, targets) == {2}
        assert tables_of(engine).findings == 0
        tables_of(engine).check()
    memory.close()


@pytest.mark.parametrize(("arch", "others"), [("x86", False), ("arm64", True)])
def test_what_goes_with_a_slot(arch: str, others: bool) -> None:
    """x86 zaps everything, arm64 the slot; ``zaps`` selects."""
    for zaps, stay in ((None, others), ("slot", True), ("all", False)):
        with guest(1, arch=arch, zaps=zaps) as g:
            g.create(0, 0, 4, 0)
            g.create(1, 1024, 4, 8)
            g.run(g.same({gfn: gfn for gfn in range(4)} | {1024 + n: 8 + n for n in range(4)}))
            until(lambda: g.accesses(0) > 100, "accesses")
            g.engine.set_load(Load())
            g.engine.kick()
            g.engine.set_memory_region(g.change(1))
            sound(g)
            assert level_of(g, 1024) is None
            assert (level_of(g, 0) == 3) is stay
            assert g.engine.counts.zaps >= 4


def test_kept_memory_keeps_its_large_mapping() -> None:
    """Split one slot into two of the same memory: nothing is zapped; then protect one: only the rest of it refaults."""
    engine, memory, targets = large()
    base = memory.translate(HVA)
    apply = find("atomic").prepare(engine)
    with engine:
        engine.start()
        touch_all(engine, targets)
        before = engine.counts.copy()
        half = BLOCK_PAGES // 2
        apply(
            engine, [Change(0), Change(0, 0, half, base), Change(1, half, 2 * BLOCK_PAGES - half, base + (half << 12))]
        )
        touch_all(engine, targets)
        assert (engine.counts - before).zaps == 0
        assert engine.vcpu_counts()[0]["stage2_faults"] == 2
        apply(engine, [Change(0), Change(0, 0, half, base, KVM_MEM_READONLY)])
        engine.set_load(Load([target for target in targets if target.gpa >> 12 >= half]))
        touch_all(engine, [target for target in targets if target.gpa >> 12 >= half])
        engine.stop()
        counts = engine.vcpu_counts()[0]
        assert (engine.counts - before).zaps == 1, "the block that reached beyond the range"
        assert counts["holes_write"] == 0
        assert counts["stage2_faults"] > 2, "the other half of that block faulted again"
        assert tables_of(engine).findings == 0
    memory.close()


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_random_updates_under_load(discipline: str, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    """Slots change memory and rights under running vCPUs: writes are where they belong, nothing stale is used."""
    with guest(2, 64, Access(writes=0.5, fetches=0.2), discipline=discipline) as g:
        apply = find("atomic").prepare(g.engine)
        g.create(0, 0, 16, 0)
        g.run(g.same({gfn: gfn for gfn in range(16)}))
        page = flags = rounds = 0
        while rounds < sized(150, 12) or (g.total("stage2_faults") <= 16 and rounds < MOST_ROUNDS):
            rounds += 1
            to, becomes = rng.choice([0, 16, 32, page]), rng.choice([0, 0, KVM_MEM_READONLY])
            targets = [
                g.target(gfn, page + gfn, to + gfn, changed=True, readonly=(bool(flags), bool(becomes)))
                for gfn in range(16)
            ]
            g.engine.set_load(Load(targets))
            g.all_move()
            with g.engine.window():
                apply(g.engine, [g.change(0), g.change(0, 0, 16, to, becomes)])
            page, flags = to, becomes
        sound(g)
        for name in ("stale", "strange", "refused_writes", "holes_read", "holes_write", "killed_fetches"):
            assert g.total(name) == 0, name
        assert g.written() == g.total("writes")
        assert g.total("stage2_faults") > 16


def test_a_fault_that_looked_before_maps_nothing(sized: Callable[[int, int], int]) -> None:
    """While the host changes a range, faults in it retry; afterwards they map."""
    with guest(1, access=WRITES) as g:
        g.create(0, 0, 4, 0)
        g.run(g.same({0: 0, 1: 1}))
        g.moves(0)
        with g.engine.host_invalidation(0, 4):
            before = g.total("fault_retries")
            until(lambda: g.total("fault_retries") > before + 3, "retries")
            seen = g.accesses(0)
            g.rest()
            assert g.accesses(0) == seen
        g.moves(0)
        sound(g)


def rehost(room: Any) -> tuple[int, int]:
    """Re-host one frame on an interpreted copy: findings, and how often the old page was written afterwards."""
    soft = room("engines.soft")
    memory = HostMemory([(HVA, HVA + 2 * PAGE)])
    pages = [memory.translate(HVA + page * PAGE) for page in range(2)]
    engine = soft.SoftEngine(1, strict=True)
    engine.set_access(room("engines").Access(writes=1, fetches=0))
    engine.set_memory_region(Change(0, 0, 1, pages[0]))
    apply = room("designs").find("atomic").prepare(engine)
    try:
        engine.start()
        engine.set_load(room("engines").Load([room("engines").Target(0, pages[0], pages[0])]))
        until(lambda: memory.word(pages[0]) > 0, "a write")
        apply(engine, [Change(0), Change(0, 0, 1, pages[1])])
        before = memory.word(pages[0])
        goal = engine.vcpu_counts()[0]["accesses"] + 50
        until(lambda: engine.vcpu_counts()[0]["accesses"] > goal, "accesses")
        return engine.stage2.findings, memory.word(pages[0]) - before
    finally:
        engine.stop()
        memory.close()


MUTANTS = {
    "vCPUs do not apply invalidations": (
        "stage2/tlb_walk.py",
        "            forget(shape, tlb, what, start, end)\n            seen",
        "            seen",
    ),
    "a zap invalidates nothing": (
        "stage2/zap.py",
        "                log_range(mmu, hub, taken.low, taken.high - taken.low)",
        "                pass",
    ),
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_a_flush_that_is_left_out_is_caught(name: str | None) -> None:
    with load([MUTANTS[name]] if name else []) as twin:
        findings, wrong = rehost(twin.room)
    if name is None:
        assert (findings, wrong) == (0, 0)
    elif "apply" in name:
        assert findings > 0, "the strict mode sees it at once"
    else:
        assert wrong > 0, "nothing was logged, so it is the old page that tells"


def test_bad_options_are_refused() -> None:
    for option in ({"zaps": "some"}, {"discipline": "hope"}):
        with pytest.raises(UsageError, match=next(iter(option))):
            SoftEngine(1, **option)  # type: ignore[arg-type]


@pytest.mark.skipif(INTERPRETED, reason="counts accesses by the thousand")
def test_address_spaces_have_tables_of_their_own() -> None:
    with guest(1, address_spaces=2) as g:
        g.create(0, 0, 4, 0)
        g.engine.set_memory_region(Change(0, 0, 4, g.hva(8), as_id=1))
        g.run(g.same({0: 0}))
        g.engine.set_load(Load(g.same({0: 8}), as_id=1))
        until(lambda: g.word(8) > 100, "writes in the other address space")
        before = g.word(0)
        g.all_move()
        assert g.word(0) == before
        g.engine.set_load(Load(g.same({0: 0})))
        until(lambda: g.word(0) > before, "and back")
        sound(g)
        assert [table.lookup(0) is not None for table in tables_of(g.engine).tables] == [True, True]
