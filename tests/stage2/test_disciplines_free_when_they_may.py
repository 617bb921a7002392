"""A table that a shared walk takes away is freed when its discipline says so, not before and not later."""

from __future__ import annotations

import pytest

from guestmem.atomics import peek, poke
from guestmem.errors import Stage2Error
from guestmem.rcu.srcu import srcu_enter, srcu_exit
from guestmem.stage2 import layout
from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.discipline import reclaim_tables
from guestmem.stage2.layout import LEAF, OK, SHARED, TABLE_PRE
from guestmem.stage2.locked import map_shared
from guestmem.stage2.map import map_range
from guestmem.stage2.pool import Pool
from guestmem.stage2.refs import hold_child, release_page
from guestmem.stage2.table import DISCIPLINES, PageTable
from guestmem.stage2.walk import walk_begin, walk_leave, walk_step
from guestmem.stage2.words import Table

BLOCK = 0x20_0000
ATTRIBUTES = arm_stage2(0x1000, 40).attributes(Rights.RW)


def made(discipline: str, **sizes: int) -> PageTable:
    """A table with a gigabyte's table, in which 2 MiB are mapped in pages."""
    pool = Pool(64, base=0x1000_0000)
    table = PageTable(arm_stage2(0x1000, 40), pool, discipline=discipline, walkers=2, cache=8, **sizes)
    table.map(0, BLOCK, 0x8000_0000, Rights.RW, level=3)
    return table


def collapse_shared(table: PageTable) -> int:
    """What a vCPU's map of the whole block returns."""
    return int(map_range(table.at(0), 0, BLOCK, 0x8000_0000, ATTRIBUTES, 1, int(SHARED)))


def in_tree(table: PageTable) -> int:
    """Pages used, but for those in caches."""
    return table.pool.used - sum(len(table.pool.cached(desk)) for desk in table.desks)


@pytest.mark.parametrize("discipline", ["rcu", "lock_subtree"])
def test_a_grace_period_is_waited_for(discipline: str) -> None:
    table = made(discipline)
    before = in_tree(table)
    srcu = int(peek(table.mmu, int(layout.SRCU_BASE)))
    srcu_enter(table.mmu, srcu, 1)
    assert collapse_shared(table) == OK
    assert reclaim_tables(table.at(0), False) == 0
    assert in_tree(table) == before
    srcu_exit(table.mmu, srcu, 1)
    table.check()
    assert reclaim_tables(table.at(0), False) == 1
    assert in_tree(table) == before - 1
    table.check()


def test_what_walkers_add_to_a_dead_subtree_is_freed_by_its_contents() -> None:
    """rcu: a walker that was inside goes on building there; the callback frees that, too."""
    table = made("rcu")
    table.unmap(0, 0x1000)  # an empty entry, for the late walker
    map_range(table.at(1), 0x4000_0000, BLOCK, 0x8000_0000, ATTRIBUTES, 3, int(SHARED))
    before = in_tree(table)
    # A late walker stands at the empty entry.
    flags = int(SHARED | LEAF)
    assert walk_begin(table.at(1), 0, 0x1000, flags) == OK
    assert walk_step(table.at(1)) == LEAF
    entry = int(table.desks[1][int(layout.ENTRY)])
    assert collapse_shared(table) == OK
    page = entry >> 9
    poke(table.pool.words, entry, 0x8000_0403)  # what its make does
    line = int(layout.PAGES) + 8 * page
    poke(table.pool.pages, line, peek(table.pool.pages, line) + 1)
    walk_leave(table.at(1))
    assert table.reclaim() == 1
    assert in_tree(table) == before - 1
    table.check()


def test_every_entry_of_a_locked_subtree_is_locked() -> None:
    table = made("lock_subtree")
    level2 = table.format.decode(table.pool.load(table.root, 0), 1)
    page = table.format.decode(table.pool.load(level2.address, 0), 2).address  # type: ignore[union-attr]
    assert collapse_shared(table) == OK
    assert {table.pool.load(page, index) for index in range(512)} == {table.format.locked}
    table.reclaim()
    table.check()


def test_rwlock_collapses_only_exclusively() -> None:
    table = made("rwlock")
    before = in_tree(table)
    assert collapse_shared(table) == layout.EBUSY
    assert in_tree(table) == before
    # The face asks again with the lock held for writing.
    assert table.map(0, BLOCK, 0x8000_0000, Rights.RW, shared=True) == 1
    assert in_tree(table) == before - 1
    table.check()


def test_walk_refs_frees_when_the_last_walker_leaves() -> None:
    table = made("walk_refs")
    before = in_tree(table)
    desk = table.desks[1]
    assert walk_begin(Table(*table.words, desk), 0, 0x1000, int(SHARED | LEAF)) == OK
    assert walk_step(Table(*table.words, desk)) == LEAF  # holds the tables on its path
    assert collapse_shared(table) == OK
    assert in_tree(table) == before
    walk_leave(Table(*table.words, desk))
    assert in_tree(table) == before - 1
    table.check()


def test_walk_refs_holds_nothing_that_was_unlinked_meanwhile() -> None:
    """The entry is read again once the page is held: here it changed between the two."""
    table = made("walk_refs")
    desk = table.desks[1]
    assert walk_begin(Table(*table.words, desk), 0, 0x1000, int(SHARED | TABLE_PRE)) == OK
    assert walk_step(Table(*table.words, desk)) == TABLE_PRE
    assert walk_step(Table(*table.words, desk)) == TABLE_PRE
    entry, old = int(desk[int(layout.ENTRY)]), int(desk[int(layout.OLD)])
    page = (old & 0xFFFF_FFFF_F000) - table.pool.base >> 12
    assert hold_child(*table.words, entry, old)  # a walker that keeps the page alive
    assert collapse_shared(table) == OK
    assert peek(table.pool.pages, int(layout.PAGES) + 8 * page + int(layout.HELD)) == 1
    assert not hold_child(*table.words, entry, old)
    assert peek(table.pool.pages, int(layout.PAGES) + 8 * page + int(layout.HELD)) == 1
    release_page(*table.words, page)
    walk_leave(Table(*table.words, desk))
    table.check()


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_exclusive_operations_free_at_once(discipline: str) -> None:
    table = made(discipline)
    before = in_tree(table)
    assert table.map(0, BLOCK, 0x8000_0000, Rights.RW) == 1
    assert in_tree(table) == before - 1
    assert table.unmap(0, BLOCK) == 1
    assert in_tree(table) == before - 2
    table.check()


def test_a_full_queue_stops_a_collapse_before_it_begins() -> None:
    table = made("rcu", queue=1)
    table.map(BLOCK, BLOCK, 0x8000_0000 + BLOCK, Rights.RW, level=3)
    assert collapse_shared(table) == OK
    desk = table.desks[0]
    arguments = (BLOCK, BLOCK, 0x8000_0000 + BLOCK, ATTRIBUTES, 1, int(SHARED))
    assert map_range(Table(*table.words, desk), *arguments) == layout.ENOMEM
    table.check()
    # The face reclaims and goes on.
    assert table.map(BLOCK, BLOCK, 0x8000_0000 + BLOCK, Rights.RW, shared=True) == 1
    table.reclaim()
    table.check()


def test_destroy_gives_every_page_back_and_ends_walks() -> None:
    for discipline in DISCIPLINES:
        table = made(discipline)
        collapse_shared(table)
        table.destroy()
        assert table.pool.used == 0
        with pytest.raises(Stage2Error, match="destroyed"):
            table.lookup(0)
        with pytest.raises(Stage2Error, match="destroyed"):
            table.map(0, 0x1000, 0, Rights.RW)
        with pytest.raises(Stage2Error, match="destroyed"):
            table.destroy()
        table.check()


def test_a_page_that_is_being_freed_cannot_be_held() -> None:
    table = made("walk_refs")
    entry = table.pool.page_of(table.root) << 9
    descriptor = int(peek(table.pool.words, entry))
    page = table.pool.page_of(table.format.decode(descriptor, 1).address)  # type: ignore[union-attr]
    held = int(layout.PAGES) + 8 * page + int(layout.HELD)
    poke(table.pool.pages, held, 0)
    assert not hold_child(*table.words, entry, descriptor)
    assert peek(table.pool.pages, held) == 0
    poke(table.pool.pages, held, 1)
    assert hold_child(*table.words, entry, descriptor)
    assert peek(table.pool.pages, held) == 2


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_a_vcpus_map_collapses_in_every_discipline(discipline: str) -> None:
    """rwlock: it comes back with the lock held for writing."""
    table = made(discipline)
    before = in_tree(table)
    assert map_shared(table.at(1), 0, BLOCK, 0x8000_0000, ATTRIBUTES, 1, 0) == OK
    table.reclaim()
    assert in_tree(table) == before - 1
    table.check()
