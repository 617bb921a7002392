"""Hardware sets access and dirty flags where it is told to, and caches nothing that lacks the access flag."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.atomics import peek
from guestmem.stage2 import Format, Pool, Rights, amd_npt, arm_stage2
from guestmem.stage2.layout import FIND
from guestmem.stage2.table import PageTable
from guestmem.stage2.tlb import Tlb

IPA, HOST = 0x5000, 0x4000_0000
ACCESSED, DIRTY = 1 << 5, 1 << 6


def put(table: PageTable, change: int) -> None:
    """Change bits of the leaf for IPA behind everybody's back."""
    assert table.lookup(IPA) is not None
    entry = int(table.desks[0][int(FIND) + 3])
    page, index = divmod(entry, 512)
    address = table.pool.address_of(page)
    table.pool.store(address, index, table.pool.load(address, index) ^ change)


def descriptor(table: PageTable) -> int:
    found = table.lookup(IPA)
    assert found is not None
    return found.descriptor


def test_x86_sets_both_as_it_goes() -> None:
    table = PageTable(amd_npt(), Pool(64), walkers=2)
    table.map(IPA, 0x1000, HOST, Rights.RW)
    put(table, ACCESSED)
    tlb = Tlb(table, 1, strict=True)
    tlb.enter()
    assert tlb.translate(IPA)[0] == "ok"
    assert descriptor(table) & (ACCESSED | DIRTY) == ACCESSED
    assert tlb.translate(IPA, write=True)[0] == "ok"
    assert descriptor(table) & DIRTY
    assert tlb.counts["flags_set"] == 2
    walks = tlb.counts["walks"]
    assert tlb.translate(IPA, write=True)[0] == "ok"
    assert tlb.counts["walks"] == walks, "what is dirty needs no walk"


def test_speculation_sets_no_dirty_flag() -> None:
    table = PageTable(amd_npt(), Pool(64), walkers=2)
    table.map(IPA, 0x1000, HOST, Rights.RW)
    tlb = Tlb(table, 1)
    tlb.enter()
    tlb.speculate(IPA)
    assert not descriptor(table) & DIRTY
    assert tlb.counts["speculative"] == tlb.counts["fills"] == 1


@pytest.mark.parametrize("sets", [False, True])
def test_arm_faults_for_the_access_flag_unless_told_to_set_it(sets: bool) -> None:
    table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=2)
    table.map(IPA, 0x1000, HOST, Rights.RW)
    put(table, 1 << 10)
    tlb = Tlb(table, 1, sets_flags=sets)
    tlb.enter()
    assert tlb.translate(IPA) == (("ok", HOST, 3) if sets else ("access flag", 0, 3))
    assert tlb.counts["fills"] == sets
    if not sets:
        table.mark_young(IPA)  # needs no invalidation: it was not cached
        assert tlb.translate(IPA)[0] == "ok"


@pytest.mark.parametrize("sets", [None, True])
def test_arm_lifts_write_protection_by_the_dirty_bit_modifier(sets: bool | None) -> None:
    table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=2)
    table.map(IPA, 0x1000, HOST, Rights.READ)
    put(table, 1 << 51)
    tlb = Tlb(table, 1, sets_flags=sets)
    tlb.enter()
    assert tlb.translate(IPA)[0] == "ok"
    assert tlb.translate(IPA, write=True)[0] == ("ok" if sets else "permission")
    assert bool(descriptor(table) & 1 << 7) == bool(sets)


@pytest.mark.parametrize("written", [False, True])
def test_write_protection_ends_the_dirty_bit_modifier(written: bool) -> None:
    table = PageTable(arm_stage2(0x1000, 40, dbm=True), Pool(64), walkers=2)
    table.map(IPA, 0x1000, HOST, Rights.READ)
    put(table, 1 << 51)
    tlb = Tlb(table, 1, sets_flags=True)
    tlb.enter()
    assert tlb.translate(IPA, write=written)[0] == "ok"
    tlb.leave()
    assert table.write_protect(IPA, 0x1000) == 1
    tlb.enter()
    assert tlb.translate(IPA, write=True)[0] == "permission"
    assert descriptor(table) & (1 << 51 | 1 << 7) == 0


def test_a_stricter_entry_faults_until_it_is_forgotten() -> None:
    """Arm: relaxing must invalidate the caller's own entry, or it faults for ever; x86 forgets by itself."""
    for made, again in ((arm_stage2(0x1000, 40), "permission"), (amd_npt(), "ok")):
        table = PageTable(made, Pool(64), walkers=3)
        table.map(IPA, 0x1000, HOST, Rights.READ)
        mine, other = Tlb(table, 1), Tlb(table, 2)
        for tlb in (mine, other):
            tlb.enter()
            tlb.translate(IPA)
            assert tlb.translate(IPA, write=True)[0] == "permission"
        mine.leave()
        table.relax(IPA, Rights.WRITE, shared=True, walker=1)
        mine.enter()
        assert mine.translate(IPA, write=True)[0] == "ok"
        assert other.translate(IPA, write=True)[0] == again
        assert mine.counts["local"] == 1
        assert peek(table.mmu, 33) == 1  # by IPA, local: nobody else was disturbed
        assert other.counts["by_address"] == 0


MAKERS: dict[str, Callable[[], Format]] = {"npt": amd_npt, "arm": lambda: arm_stage2(0x1000, 40)}
CHANGES: dict[str, Callable[[PageTable], object]] = {
    "write_protect": lambda table: table.write_protect(0, 0x20_0000),
    "split": lambda table: table.split(0, 0x20_0000),
    "split, nT": lambda table: table.split(0, 0x20_0000, bbm=1),
    "split at once": lambda table: table.split(0, 0x20_0000, bbm=2),
    "collapse": lambda table: table.collapse(0, 0x20_0000),
    "collapse, nT": lambda table: table.collapse(0, 0x20_0000, bbm=1),
    "collapse at once": lambda table: table.collapse(0, 0x20_0000, bbm=2),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MAKERS)
def test_flags_survive_exclusive_changes(name: str, change: str) -> None:
    """What hardware set before is in the new leaves; every schedule of what it sets meanwhile: stage2-flags-*."""
    table = PageTable(MAKERS[name](), Pool(64), walkers=2)
    table.map(0, 0x20_0000, HOST, Rights.RW, level=3 if "collapse" in change or "protect" in change else 2)
    table.young(0, 0x20_0000, clear=True)
    tlb = Tlb(table, 1, bbm=2)
    tlb.enter()
    assert tlb.translate(0x3000, write=name == "npt")[0] == "ok"
    tlb.leave()
    CHANGES[change](table)
    found = table.lookup(0x3000)
    assert found is not None
    flag = DIRTY | ACCESSED if name == "npt" else 1 << 10
    assert found.descriptor & flag == flag
    other = table.lookup(0x4000)
    assert other is not None
    assert bool(other.descriptor & flag) == (change != "write_protect")
