"""A table becomes a block, and a block a table, as far as FEAT_BBM spares break-before-make; hardware that takes less
of it is upset."""

from __future__ import annotations

import threading
import time

import pytest

from guestmem.atomics import peek, poke
from guestmem.stage2 import Pool, Rights, Table, amd_npt, arm_stage2
from guestmem.stage2.invalidate import invalidate_ipa
from guestmem.stage2.table import PageTable
from guestmem.stage2.tlb import Tlb
from guestmem.stage2.tlb_layout import SEQUENCE, WALK_BASE

NT = 1 << 16
BLOCK, HOST = 0x20_0000, 0x4000_0000
LIMIT_S = 120
"""For a thread whose first split may have to be compiled."""


def pages(walkers: int = 2) -> PageTable:
    """2 MiB in pages that could be one block."""
    table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=walkers)
    table.map(BLOCK, BLOCK, HOST, Rights.RWX, level=3)
    return table


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bbm", [0, 1, 2])
def test_a_table_becomes_a_block(bbm: int, shared: bool) -> None:
    table = pages()
    tlb = Tlb(table, 1, bbm=bbm, strict=True)
    tlb.enter()
    tlb.translate(BLOCK + 0x3000)
    tlb.leave()
    assert table.collapse(BLOCK, BLOCK, bbm=bbm, shared=shared) == 1
    tlb.enter()
    assert tlb.translate(BLOCK + 0x3008) == ("ok", HOST + 0x3008, 2)
    found = table.lookup(BLOCK)
    assert found is not None
    assert not found.descriptor & NT
    tlb.check()
    assert tlb.finding is None
    table.reclaim()
    table.check()


def entry_of_block(table: PageTable) -> int:
    """Word of the level-2 entry for BLOCK; the root has level 1."""
    below = table.format.decode(table.pool.load(table.root, 0), 1)
    assert isinstance(below, Table)
    return (below.address - table.pool.base) // 8 + 1


def swap_in_place(table: PageTable) -> None:
    """Replace the table by its block and invalidate nothing: the moment between the two."""
    attributes = table.format.attributes(Rights.RWX)
    poke(table.pool.words, entry_of_block(table), table.format.leaf(2, HOST, attributes))


@pytest.mark.parametrize("bbm", [0, 1, 2])
def test_two_sizes_at_once_are_a_conflict(bbm: int) -> None:
    table = pages()
    tlb = Tlb(table, 1, bbm=bbm, strict=True)
    tlb.enter()
    tlb.translate(BLOCK + 0x3000)
    swap_in_place(table)
    for place in range(16):  # or the next walk would start at the old table, which is still cached
        tlb.words[int(tlb.words[int(WALK_BASE)]) + 4 * place] = 0
    assert tlb.translate(BLOCK + 0x4000)[2] == 2
    fault, _, _ = tlb.translate(BLOCK + 0x3000, va=0x7777_0000)
    assert fault == "conflict"
    assert tlb.counts["conflicts"] == 1
    if bbm == 2:
        assert tlb.finding is None, "the architecture allows it, and says what to do"
    else:
        assert tlb.finding is not None
        assert tlb.finding.kind == "two sizes at once"
    assert tlb.translate(BLOCK + 0x3000)[0] == "ok", "everything was forgotten"


def test_a_block_with_nt_is_not_cached() -> None:
    table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=2)
    table.map(BLOCK, BLOCK, HOST, Rights.RWX)
    entry = entry_of_block(table)
    poke(table.pool.words, entry, peek(table.pool.words, entry) | NT)
    tlb = Tlb(table, 1, bbm=1)
    tlb.enter()
    for turn in range(1, 4):
        assert tlb.translate(BLOCK + 0x123) == ("ok", HOST + 0x123, 2), "nT lies among the address bits"
        assert tlb.counts["walks"] == turn
        assert tlb.counts["fills"] == 0
    found = table.lookup(BLOCK + 0x123)
    assert found is not None
    assert found.address == HOST + 0x123


WAYS = ("break", "nt", "direct")


def test_x86_has_no_nt() -> None:
    table = PageTable(amd_npt(), Pool(64), walkers=2)
    table.map(BLOCK, BLOCK, HOST, Rights.RWX)
    assert table.split(BLOCK, BLOCK, bbm=1) == table.collapse(BLOCK, BLOCK, bbm=1) == 1
    assert table.replacements == {"break": 2, "nt": 0, "direct": 0}


@pytest.mark.parametrize("bbm", [0, 1, 2])
def test_a_block_becomes_a_table(bbm: int) -> None:
    table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=2)
    table.map(BLOCK, BLOCK, HOST, Rights.RWX)
    tlb = Tlb(table, 1, bbm=bbm, strict=True)
    tlb.enter()
    tlb.translate(BLOCK + 0x3000)
    tlb.leave()
    assert table.split(BLOCK, BLOCK, bbm=bbm) == 1
    assert table.replacements == {way: int(way == WAYS[bbm]) for way in WAYS}
    tlb.enter()
    assert tlb.translate(BLOCK + 0x3008) == ("ok", HOST + 0x3008, 3)
    assert tlb.translate(BLOCK + 0x1F_F000) == ("ok", HOST + 0x1F_F000, 3)
    tlb.check()
    assert tlb.finding is None
    table.check()
    tlb.leave()
    assert table.collapse(BLOCK, BLOCK, bbm=bbm) == 1
    assert table.replacements[WAYS[bbm]] == 2


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("bbm", [0, 1, 2])
def test_a_split_that_hardware_does_not_take_is_found(bbm: int, level: int) -> None:
    """A vCPU stays in the guest while its block is split, and walks ahead: the moment between table and TLBI."""
    table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=2)
    table.map(BLOCK, BLOCK, HOST, Rights.RWX)
    tlb = Tlb(table, 1, bbm=bbm, strict=True)
    tlb.enter()
    tlb.translate(BLOCK)
    splitter = threading.Thread(target=lambda: table.split(BLOCK, BLOCK, bbm=level), daemon=True)
    splitter.start()
    sequence = table.tlb_hub + int(SEQUENCE)
    deadline = time.monotonic() + LIMIT_S
    while peek(table.mmu, sequence) == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    tlb.speculate(BLOCK + 0x3000, walk=True)
    fault, *_ = tlb.translate(BLOCK + 0x3000, va=0x7777_0000)
    while splitter.is_alive() and time.monotonic() < deadline:
        tlb.apply()
        time.sleep(0.001)
    splitter.join(LIMIT_S)
    assert (tlb.finding is not None) == (level == 2 and bbm < 2)
    assert fault == ("conflict" if level == 2 else "ok")
    assert tlb.counts["conflicts"] == int(level == 2)
    assert tlb.translate(BLOCK + 0x3000) == ("ok", HOST + 0x3000, 3)
    tlb.check()
    tlb.leave()


@pytest.mark.parametrize("changed", [False, True])
def test_an_invalidation_from_a_dead_table_is_no_finding(changed: bool) -> None:
    """A walker inside a table that became a block breaks a page there. If the block went, too, it is used stale."""
    table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=2)
    table.map(BLOCK, BLOCK, HOST, Rights.RWX)
    tlb = Tlb(table, 1, strict=True)
    tlb.enter()
    tlb.translate(BLOCK)
    tlb.leave()
    if changed:
        poke(table.pool.words, entry_of_block(table), 0)
    invalidate_ipa(table.mmu, BLOCK + 0x3000, 3)
    tlb.enter()
    tlb.translate(BLOCK + 0x3000, va=0x7777_0000)
    assert (tlb.finding is not None) == changed
