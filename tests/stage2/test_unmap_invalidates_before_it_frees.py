"""Invalidations: which, of what range, with which level hint; each line is a bug that Linux had once."""

from __future__ import annotations

import pytest

from guestmem.atomics import peek
from guestmem.errors import Stage2Error
from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.layout import TLB
from guestmem.stage2.pool import Pool
from guestmem.stage2.table import PageTable

BLOCK, GIB = 0x20_0000, 1 << 30
RW = Rights.RW


def made() -> PageTable:
    return PageTable(arm_stage2(0x1000, 40), Pool(600, base=0x1000_0000), cache=8)


def counts(table: PageTable) -> list[int]:
    """By IPA, local, by range, all; start, size, level of the last."""
    return [int(peek(table.mmu, int(TLB) + at)) for at in range(7)]


def changed(table: PageTable, before: list[int]) -> list[int]:
    return [after - was for was, after in zip(before[:4], counts(table)[:4], strict=True)]


def test_what_was_not_there_needs_none() -> None:
    table = made()
    table.map(GIB, GIB, GIB, RW)
    table.map(3 * GIB, 0x5000, GIB, RW)
    assert counts(table)[:4] == [0, 0, 0, 0]


def test_a_leaf_is_invalidated_by_address_with_its_level() -> None:
    table = made()
    table.map(GIB, 2 * BLOCK, GIB, RW)
    table.map(GIB + BLOCK, BLOCK, 4 * GIB, RW)  # another address: break-before-make
    assert counts(table)[:7] == [1, 0, 0, 0, GIB + BLOCK, 1, 2]


def test_a_collapsed_table_is_invalidated_from_its_entry_on_without_hint() -> None:
    """36e008323926 (level hint for a table), 4c36a1567388 (from the address that faulted)."""
    table = made()
    table.map(GIB, BLOCK, GIB, RW, level=3)
    before = counts(table)
    table.map(GIB, BLOCK, GIB, RW)
    assert changed(table, before) == [0, 0, 1, 0]
    assert counts(table)[4:] == [GIB, BLOCK, 4]


@pytest.mark.parametrize("defer", [False, True])
def test_a_table_that_goes_is_invalidated_even_if_leaves_wait(defer: bool) -> None:
    """f62d4c3eb687: invalidation deferred to the end although tables were freed."""
    table = made()
    table.map(GIB, 0x3000, GIB, RW)
    before = counts(table)
    assert table.unmap(GIB, 0x3000, defer=defer) == 3
    # Two tables go, a gigabyte's and a block's; then, deferred, the leaves' own range.
    assert changed(table, before) == ([0, 0, 3, 0] if defer else [3, 0, 2, 0])
    assert counts(table)[4:] == ([GIB, 0x3000, 4] if defer else [GIB, GIB, 4])


def test_a_deferred_range_covers_whole_blocks() -> None:
    table = made()
    table.map(GIB, 2 * BLOCK, GIB, RW)
    table.map(GIB + 2 * BLOCK, 0x1000, GIB, RW)
    table.unmap(GIB + BLOCK + 0x5000, 0x1000, defer=True, exact=False)
    assert counts(table)[4:] == [GIB + BLOCK, BLOCK, 4]


def test_relax_invalidates_here_also_when_it_lost() -> None:
    """be097997a273 (none after EAGAIN), and its own bug (a level that was never set)."""
    table = made()
    table.map(GIB, BLOCK, GIB, Rights.READ)
    table.relax(GIB + 0x5123, RW, shared=True)
    assert counts(table)[:7] == [0, 1, 0, 0, GIB + 0x5123, 1, 2]
    with pytest.raises(Stage2Error, match="EAGAIN"):
        table.relax(5 * GIB, RW, shared=True)
    assert counts(table)[1] == 2
    assert counts(table)[6] == 1  # where the walk ended


def test_taking_rights_away_is_followed_by_a_flush() -> None:
    table = made()
    table.map(GIB, 4 * BLOCK, GIB, RW)
    before = counts(table)
    assert table.write_protect(GIB, 2 * BLOCK) == 2
    assert changed(table, before) == [0, 0, 1, 0]
    assert counts(table)[4:6] == [GIB, 2 * BLOCK]
    assert table.write_protect(GIB, 2 * BLOCK) == 0
    assert changed(table, before) == [0, 0, 1, 0]


def test_the_access_flag_of_every_leaf_is_looked_at() -> None:
    """df6556adf27b: aging visited one leaf only."""
    table = made()
    table.map(GIB, 3 * BLOCK + 0x2000, GIB, RW)
    assert table.young(GIB, GIB, clear=True) == 5
    table.mark_young(GIB + 3 * BLOCK + 0x1000)
    assert table.young(GIB, GIB) == 1
