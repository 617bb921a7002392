"""After an invalidation is complete no TLB translates as before: in order, by level hint, by range, on entry, and a TLB
that does not forget is seen at its next use or by check()."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from guestmem.atomics import peek
from guestmem.errors import InvariantError
from guestmem.explore import load
from guestmem.stage2 import tlb_layout
from guestmem.stage2.arm import ArmFormat, arm_stage2
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.format import Annotations, Format
from guestmem.stage2.geometry import Geometry
from guestmem.stage2.invalidate import invalidate_range
from guestmem.stage2.npt import NptFormat, amd_npt
from guestmem.stage2.pool import Pool
from guestmem.stage2.table import PageTable
from guestmem.stage2.tlb import Tlb

HOST = 0x40_0000_0000
BLOCK = 0x20_0000
LIMIT_S = 120
"""For a thread whose first unmapping may have to be compiled."""
FORMATS: dict[str, Callable[[], Format]] = {
    "arm": lambda: arm_stage2(0x1000, 40),
    "npt": amd_npt,
    "arm-8-entries": lambda: ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1),
    "npt-8-entries": lambda: NptFormat(Geometry(12, 3, 0, 24), 48, Annotations.LINUX_7_1),
}


def same_room(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"guestmem.{name}")


def scene(room: Callable[[str], ModuleType], **options: Any) -> tuple[Any, Any]:
    """A table with a block at 2 MiB and pages at 4 MiB, and a strict TLB for it; of the package or of a mutant."""
    stage2 = room("stage2")
    table = room("stage2.table").PageTable(stage2.arm_stage2(0x1000, 40), stage2.Pool(64), walkers=2)
    table.map(BLOCK, BLOCK, HOST + BLOCK, stage2.Rights.RWX)
    table.map(2 * BLOCK, 0x4000, HOST + 2 * BLOCK, stage2.Rights.RWX)
    return table, room("stage2.tlb").Tlb(table, 1, strict=True, **options)


@contextlib.contextmanager
def outside(tlb: Any) -> Iterator[None]:
    """The vCPU leaves the guest, and enters it again at the end."""
    tlb.leave()
    yield
    tlb.enter()


@pytest.mark.parametrize("name", FORMATS)
def test_translations_are_the_tables(name: str, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    """Random operations while the vCPU is outside, then random accesses: each is what the table says then."""
    made = FORMATS[name]()
    table = PageTable(made, Pool(256), walkers=2)
    tlb = Tlb(table, 1, combined=8, leaves=4, walks=2, strict=True)
    page, block = 0x1000, 1 << made.geometry.shift(2)
    frames = 4 * block // page
    seen = dict.fromkeys(("ok", "translation", "permission"), 0)
    for _ in range(sized(3000, 300)):
        gfn = rng.randrange(frames)
        action = rng.random()
        if action < 0.15:
            whole = rng.random() < 0.3
            ipa, size = (gfn * page // block * block, block) if whole else (gfn * page, page)
            with contextlib.suppress(Exception):
                table.map(ipa, size, HOST + ipa, rng.choice([Rights.RWX, Rights.READ | Rights.X]))
        elif action < 0.25:
            table.unmap(gfn * page, page * rng.choice([1, 4]) if gfn + 4 <= frames else page, defer=rng.random() < 0.5)
        elif action < 0.3:
            table.write_protect(gfn * page, page)
        elif action < 0.35:
            with contextlib.suppress(Exception):
                table.relax(gfn * page, Rights.WRITE, walker=1)
        elif action < 0.4:
            table.collapse(0, 4 * block)
        elif action < 0.45:
            table.split(gfn * page // block * block, block)
        tlb.enter()
        for _ in range(4):
            ipa = rng.randrange(frames) * page + rng.randrange(page)
            write = rng.random() < 0.5
            if rng.random() < 0.1:
                tlb.speculate(ipa)
            fault, address, level = tlb.translate(ipa, write=write, va=ipa ^ 0x7000_0000_0000)
            want = table.lookup(ipa, walker=1)
            seen[fault] += 1
            if want is None:
                assert fault == "translation"
            elif fault == "ok":
                assert (address, level) == (want.address, want.level)
            else:
                assert fault == "permission"
                assert write
        tlb.check()
        tlb.leave()
    assert tlb.finding is None
    assert all(seen.values()), seen
    counts = tlb.counts
    kinds = ("leaf_hits", "walk_hits", "by_address", "by_range", "combined", "local")
    assert all(counts[kind] for kind in kinds), counts


def logged(table: PageTable) -> int:
    return peek(table.mmu, table.tlb_hub + int(tlb_layout.SEQUENCE))


def start(table: PageTable, operation: Callable[[], object]) -> threading.Thread:
    """Run an operation on another thread, until it has logged an invalidation, and a moment more."""
    before = logged(table)
    other = threading.Thread(target=operation, daemon=True)
    other.start()
    end = time.monotonic() + LIMIT_S
    while logged(table) == before:
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(0.03)
    return other


def test_an_invalidation_waits_for_vcpus_in_the_guest() -> None:
    table, tlb = scene(same_room)
    tlb.enter()
    assert tlb.translate(2 * BLOCK)[0] == "ok"
    other = start(table, lambda: table.unmap(2 * BLOCK, 0x1000))
    assert other.is_alive()
    tlb.apply()
    other.join(LIMIT_S)
    assert not other.is_alive()
    assert tlb.translate(2 * BLOCK)[0] == "translation"
    tlb.leave()
    table.unmap(2 * BLOCK + 0x1000, 0x1000)  # waits for nobody
    assert tlb.finding is None


def test_one_that_leaves_is_waited_for_no_longer() -> None:
    table, tlb = scene(same_room)
    tlb.enter()
    other = start(table, lambda: table.unmap(2 * BLOCK, 0x1000))
    assert other.is_alive()
    tlb.leave()
    other.join(LIMIT_S)
    assert not other.is_alive()


def test_a_long_absence_costs_everything_on_entry() -> None:
    table, tlb = scene(same_room)
    tlb.enter()
    tlb.translate(BLOCK)
    with outside(tlb):
        for _ in range(40):
            invalidate_range(table.mmu, 8 * BLOCK, BLOCK)
    assert tlb.counts["entry_flushes"] == 1
    assert tlb.counts["by_range"] == 0
    before = tlb.counts["walks"]
    tlb.translate(BLOCK)
    assert tlb.counts["walks"] == before + 1


def test_a_range_too_long_for_one_instruction_takes_everything() -> None:
    """2**21 pages are the most that one names: 8 GiB."""
    table, tlb = scene(same_room)
    tlb.enter()
    for size, everything in ((1 << 33, 0), ((1 << 33) + 0x1000, 1)):
        tlb.translate(BLOCK)
        with outside(tlb):
            invalidate_range(table.mmu, 1 << 36, size)
        assert tlb.counts["everything"] == everything


def test_a_range_leaves_the_rest_alone() -> None:
    table, tlb = scene(same_room)
    tlb.enter()
    page = 2 * BLOCK + 0x1000
    tlb.translate(BLOCK)
    tlb.translate(page)
    with outside(tlb):
        invalidate_range(table.mmu, 2 * BLOCK, BLOCK)
    walks = tlb.counts["walks"]
    tlb.translate(BLOCK)
    assert tlb.counts["walks"] == walks
    tlb.translate(page)
    assert tlb.counts["walks"] == walks + 1


def unmaps_pages(table: Any, tlb: Any) -> None:
    tlb.translate(2 * BLOCK)
    with outside(tlb):
        table.unmap(2 * BLOCK, 0x1000)
    tlb.translate(2 * BLOCK)


def unmaps_a_block(table: Any, tlb: Any) -> None:
    tlb.translate(BLOCK + 0x5000)
    with outside(tlb):
        table.unmap(BLOCK, BLOCK)
    tlb.translate(BLOCK + 0x5000)


def unmaps_with_speculation(table: Any, tlb: Any) -> None:
    tlb.speculate(2 * BLOCK, between=True)
    unmaps_pages(table, tlb)


def unmaps_a_table(table: Any, tlb: Any) -> None:
    tlb.translate(2 * BLOCK)
    with outside(tlb):
        table.unmap(2 * BLOCK, BLOCK)
    tlb.translate(2 * BLOCK)


def maps_a_block_over_pages(table: Any, tlb: Any) -> None:
    tlb.translate(2 * BLOCK)
    with outside(tlb):
        table.unmap(2 * BLOCK + 0x2000, 0x1000)
        table.map(2 * BLOCK, BLOCK, HOST + 2 * BLOCK, Rights.RWX)


STAGE2_RECORD = "    _log(mmu, hub, what, start, end)\n"
COMBINED_RECORD = "    _log(mmu, hub, COMBINED, start, end)\n"
MUTANTS = {
    "a vCPU does not apply the log": (
        "stage2/tlb_walk.py",
        "            forget(shape, tlb, what, start, end)\n            seen",
        "            seen",
        unmaps_pages,
    ),
    "combined entries go first": (
        "stage2/tlbi.py",
        f"{STAGE2_RECORD}    if what != EVERYTHING:\n    {COMBINED_RECORD}",
        f"    if what != EVERYTHING:\n    {COMBINED_RECORD}{STAGE2_RECORD}",
        unmaps_with_speculation,
    ),
    "combined entries are not invalidated": (
        "stage2/tlbi.py",
        "    if what != EVERYTHING:\n",
        "    if False:\n",
        unmaps_pages,
    ),
    "the level hint of a block says page": (
        "stage2/unmap.py",
        "invalidate_ipa(mmu, desk[ADDRESS], level)",
        "invalidate_ipa(mmu, desk[ADDRESS], u64(3))",
        unmaps_a_block,
    ),
    "the level hint of a page says block": (
        "stage2/unmap.py",
        "invalidate_ipa(mmu, desk[ADDRESS], level)",
        "invalidate_ipa(mmu, desk[ADDRESS], u64(2))",
        unmaps_pages,
    ),
    "unmap invalidates no leaf": (
        "stage2/unmap.py",
        "invalidate_ipa(mmu, desk[ADDRESS], level)",
        "pass",
        unmaps_pages,
    ),
    "a removed table is invalidated with a hint": (
        "stage2/unmap.py",
        "invalidate_range(mmu, (desk[ADDRESS] - ONE) >> shift << shift, ONE << shift)",
        "invalidate_ipa(mmu, (desk[ADDRESS] - ONE) >> shift << shift, level)",
        unmaps_a_table,
    ),
    "a broken table is not invalidated": (
        "stage2/entry.py",
        "            invalidate_range(mmu, desk[ADDRESS] >> shift << shift, ONE << shift)",
        "            pass",
        maps_a_block_over_pages,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_left_out_is_found(name: str) -> None:
    """Two of them at the next use; three, which no invalidation covers, by check()."""
    path, text, instead, scenario = MUTANTS[name]

    def sound(room: Callable[[str], ModuleType]) -> bool:
        table, tlb = scene(room)
        tlb.enter()
        scenario(table, tlb)
        try:
            tlb.check()
        except InvariantError:
            return False
        return tlb.finding is None

    with load() as twin:
        assert sound(twin.room)
    with load([(path, text, instead)]) as mutant:
        assert not sound(mutant.room)


def test_a_finding_names_address_level_and_vcpu() -> None:
    path, text, instead, _ = MUTANTS["a vCPU does not apply the log"]
    with load([(path, text, instead)]) as mutant:
        table, tlb = scene(mutant.room)
        tlb.enter()
        tlb.translate(2 * BLOCK)
        with outside(tlb):
            table.unmap(2 * BLOCK, 0x1000)
        tlb.translate(2 * BLOCK)
        assert tlb.finding[:4] == ("combined entry", 2 * BLOCK, 3, 1)


def test_without_the_strict_mode_nothing_is_looked_at() -> None:
    path, text, instead, scenario = MUTANTS["a vCPU does not apply the log"]
    with load([(path, text, instead)]) as mutant:
        table, tlb = scene(mutant.room)
        tlb.words[int(tlb_layout.STRICT)] = 0
        tlb.enter()
        scenario(table, tlb)
        assert tlb.finding is None
        assert tlb.counts["findings"] == 0
