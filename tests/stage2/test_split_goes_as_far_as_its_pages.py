"""Split: in chunks, as far as pages go, with the block's rights and memory type; and a collapse undoes it."""

from __future__ import annotations

import pytest

from guestmem.atomics import peek, poke
from guestmem.errors import InvariantError, Stage2Error
from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.descriptor import Memory, Rights
from guestmem.stage2.layout import COUNT, EAGAIN, ENOMEM, OK, PAGES, PROGRESS, RESULT
from guestmem.stage2.pool import Pool
from guestmem.stage2.split import split_range
from guestmem.stage2.table import PageTable
from guestmem.stage2.words import Table

BLOCK, GIB = 0x20_0000, 1 << 30


def made(pages: int = 600, cache: int = 8) -> PageTable:
    return PageTable(arm_stage2(0x1000, 40), Pool(pages, base=0x1000_0000), cache=cache)


def test_a_budget_stops_it_and_progress_says_where() -> None:
    table = made()
    table.map(GIB, 8 * BLOCK, GIB, Rights.RW)
    desk = table.desks[0]
    assert split_range(Table(*table.words, desk), GIB, 8 * BLOCK, 3, 2) == EAGAIN
    assert (desk[int(RESULT)], desk[int(PROGRESS)]) == (2, GIB + 2 * BLOCK)
    assert split_range(Table(*table.words, desk), GIB + 2 * BLOCK, 6 * BLOCK, 3, 100) in {OK, ENOMEM}
    table.check()


@pytest.mark.parametrize("cache", [8, 520])
def test_a_gigabyte_becomes_pages_through_blocks_if_pages_are_few(cache: int) -> None:
    table = made(pages=1100, cache=cache)
    table.map(GIB, GIB, 4 * GIB, Rights.READ, memory=Memory.DEVICE, software=5)
    first = table.lookup(GIB)
    assert first is not None
    assert first.level == 1
    assert table.split(GIB, GIB) == (513 if cache == 8 else 1)
    for ipa in (GIB, GIB + 0x1234_5000, 2 * GIB - 0x1000):
        found = table.lookup(ipa)
        assert found is not None
        assert (found.level, found.address) == (3, ipa + 3 * GIB)
        leaf = table.format.decode(found.descriptor, 3)
        assert (leaf.memory, leaf.software, leaf.rights) == (Memory.DEVICE, 5, Rights.READ)  # type: ignore[union-attr]
    table.check()
    assert table.collapse(GIB, GIB) == 513
    assert table.lookup(GIB) == first
    table.check()


def test_without_pages_what_is_not_split_stays_mapped() -> None:
    table = made(pages=12)
    table.map(GIB, 32 * BLOCK, GIB, Rights.RW)
    with pytest.raises(Stage2Error, match="ENOMEM"):
        table.split(GIB, 32 * BLOCK)
    levels = [table.lookup(GIB + at * BLOCK).level for at in range(32)]  # type: ignore[union-attr]
    assert levels[0] == 3
    assert levels[-1] == 2
    assert levels == sorted(levels, reverse=True)
    table.check()


def test_a_table_with_a_hole_or_two_kinds_is_not_collapsed() -> None:
    table = made()
    table.map(GIB, 3 * BLOCK, GIB, Rights.RW, level=3)
    table.unmap(GIB + 0x7000, 0x1000)
    table.unmap(GIB + BLOCK + 0x7000, 0x1000)
    table.map(GIB + BLOCK + 0x7000, 0x1000, GIB + BLOCK + 0x7000, Rights.READ)
    table.young(GIB + 2 * BLOCK, 0x1000, clear=True)
    assert table.collapse(GIB, 3 * BLOCK) == 1
    assert [table.lookup(GIB + at * BLOCK).level for at in range(3)] == [3, 3, 2]  # type: ignore[union-attr]
    table.check()


def test_a_run_that_is_not_aligned_is_not_collapsed() -> None:
    table = made()
    table.map(GIB, BLOCK, GIB + 0x1000, Rights.RW)
    assert table.collapse(GIB, BLOCK) == 0
    table.check()


@pytest.mark.parametrize("young", [0, 7, 511])
def test_a_block_is_young_if_any_of_its_pages_is(young: int) -> None:
    table = made()
    table.map(GIB, BLOCK, GIB, Rights.RW, level=3)
    table.young(GIB, BLOCK, clear=True)
    table.mark_young(GIB + young * 0x1000)
    assert table.collapse(GIB, BLOCK) == 1
    assert table.young(GIB, BLOCK) == 1


def test_a_count_that_is_wrong_when_a_table_is_freed_is_reported() -> None:
    table = made()
    table.map(GIB, BLOCK, GIB, Rights.RW, level=3)
    level2 = table.format.decode(table.pool.load(table.root, 1), 1).address  # type: ignore[union-attr]
    level3 = table.format.decode(table.pool.load(level2, 0), 2).address  # type: ignore[union-attr]
    count = int(PAGES) + 8 * table.pool.page_of(level3) + int(COUNT)
    poke(table.pool.pages, count, peek(table.pool.pages, count) - 1)
    table.collapse(GIB, BLOCK)
    with pytest.raises(InvariantError, match="wrong count"):
        table.check()
