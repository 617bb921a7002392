"""Join what donations broke: a table whose pages are all the host's again becomes a block.

What the thread of April 2022 wished for, and mainline lacks. Android has it ("Coalesce host stage2 entries on ownership
reclaim", 2023) by a count of entries that are not default ones, and leaves an empty slot to the next fault; here a
count a block of pages that are away decides, in O(1), and the block is put where the table was, by
break-before-make. Under walk_refs this runs beside faults of other CPUs, under the lock for reading: their walks hold
the pages they are in, and the last one inside frees.
"""

from __future__ import annotations

from ...atomics import fetch_add, load_relaxed
from ...compiled import ONE, U64, compiled, u64
from ..discipline import may_unlink, unlink_table
from ..entry import break_entry, leaf_descriptor, level_shift, make_entry, table_page
from ..layout import (
    DISCIPLINE,
    LAST_LEVEL,
    LEVEL,
    LOCK_BASE,
    MIN_BLOCK_LEVEL,
    OK,
    OLD,
    PAGE_SHIFT,
    SHARED,
    TABLE_PRE,
    VCPUS,
    WALK_REFS,
    WALKER,
)
from ..rwlock import read_lock, read_unlock, write_lock, write_unlock
from ..walk import walk_begin, walk_leave, walk_step
from ..words import Table
from .layout import BLOCKS_JOINED, HOST_MEMORY
from .ownership import away, is_memory
from .words import Hyp

__all__ = ["join_page", "join_range"]


@compiled(nogil=True)
def join_page(hyp: Hyp, page: U64) -> U64:
    """Join the tables that ``page`` lies in, from the smallest block up, as far as they are whole; returns how many.

    A block must be memory of one region, all the host's own (or shared by it). An entry that is empty stays so, and a
    table that another CPU takes away meanwhile is left to it. Takes the host's lock: for reading under walk_refs, else
    for writing. O(entries of the tables that go).
    """
    shape, _pool, _pages, host, desk, el2 = hyp
    lock = load_relaxed(host, LOCK_BASE)
    flags = SHARED if load_relaxed(host, DISCIPLINE) == WALK_REFS else u64(0)
    if flags != 0:
        read_lock(host, lock, desk[WALKER])
    else:
        write_lock(host, lock, load_relaxed(host, VCPUS))
    joined = u64(0)
    level = shape[LAST_LEVEL] - ONE
    while level >= shape[MIN_BLOCK_LEVEL]:
        shift = level_shift(shape, level)
        start = page << shape[PAGE_SHIFT] >> shift << shift
        if not is_memory(el2, start, start + (ONE << shift)) or away(shape, el2, page, level) != 0:
            break
        if _join_table(hyp, start, level, flags):
            joined += ONE
        level -= ONE
    if flags != 0:
        read_unlock(host, lock, desk[WALKER])
    else:
        write_unlock(host, lock)
    if joined != 0:
        fetch_add(el2, BLOCKS_JOINED, joined)
    return joined


@compiled
def _join_table(hyp: Hyp, start: U64, level: U64, flags: U64) -> bool:
    """Put a block in the place of the table for ``start`` at ``level``; False if there is none, or a race is lost.

    Only a table is replaced: a walk as ``map``'s would break a larger block that another CPU joined just now.
    """
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    if walk_begin(host_table, start, ONE << shape[PAGE_SHIFT], flags | TABLE_PRE) != OK:
        return False
    joined = False
    while walk_step(host_table) == TABLE_PRE:
        if desk[LEVEL] != level:
            continue
        old = desk[OLD]
        if may_unlink(host_table) == OK and break_entry(host_table):
            attributes = load_relaxed(el2, HOST_MEMORY)
            make_entry(host_table, leaf_descriptor(shape, level, start, attributes))
            unlink_table(host_table, table_page(shape, old))
            joined = True
        break
    walk_leave(host_table)
    return joined


@compiled(nogil=True)
def join_range(hyp: Hyp, page: U64, end: U64) -> U64:
    """Join all blocks that ``[page, end)`` touches, a lock each; returns how many. O(blocks + entries that go)."""
    shape = hyp.shape
    joined = u64(0)
    step = ONE << (level_shift(shape, shape[LAST_LEVEL] - ONE) - shape[PAGE_SHIFT])
    while page < end:
        joined += join_page(hyp, page)
        page = (page & ~(step - ONE)) + step
    return joined
