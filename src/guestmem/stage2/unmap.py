"""Unmap a range: leaves and owners' marks go, and tables that are empty then.

Exclusive only, as merged in Linux (``kvm_pgtable_stage2_unmap()``, ``arch/arm64/kvm/hyp/pgtable.c``): no shared walk
is inside, so pages are freed at once, in every discipline; their invalidation comes first.
"""

from __future__ import annotations

from ..atomics import fetch_add, load_relaxed, store_relaxed
from ..compiled import ONE, U64, compiled, u64
from .entry import entry_line, is_table, level_shift, page_put, table_page
from .free_list import page_give
from .invalidate import invalidate_ipa, invalidate_range
from .layout import (
    ADDRESS,
    COUNT,
    DEFER_INVALIDATE,
    END,
    ENTRY,
    HELD,
    LEAF,
    LEVEL,
    LOCKED,
    OK,
    OLD,
    PAGES,
    PROGRESS,
    RESULT,
    TABLE_POST,
    UNSOUND,
    VALID,
)
from .walk import DONE, walk_begin, walk_step
from .words import Table

__all__ = ["unmap_range"]


@compiled(nogil=True)
def unmap_range(table: Table, ipa: U64, size: U64, flags: U64) -> U64:
    """Unmap ``[ipa, ipa + size)``, bytes in whole pages; returns OK, or EINVAL or ERANGE for a bad range.

    A block that the range only touches goes as a whole. ``flags``: DEFER_INVALIDATE, one invalidation by range for all
    leaves, at the end; a table that goes is invalidated at once, or walks would go on through a freed page.
    desk[RESULT]: leaves and marks removed. Exclusive. O(entries in the range's tables).
    """
    shape, pool, pages, mmu, desk = table
    status = walk_begin(table, ipa, size, (flags & DEFER_INVALIDATE) | LEAF | TABLE_POST)
    if status != OK:
        return status
    low = ipa
    high = ipa
    while True:
        visit = walk_step(table)
        if visit == DONE:
            break
        old = desk[OLD]
        level = desk[LEVEL]
        entry = desk[ENTRY]
        if visit == LEAF:
            if old == 0:
                continue
            if old == shape[LOCKED]:
                fetch_add(mmu, UNSOUND, ONE)
                continue
            store_relaxed(pool, entry, u64(0))
            if old & shape[VALID] != 0:
                if flags & DEFER_INVALIDATE == 0:
                    invalidate_ipa(mmu, desk[ADDRESS], level)
                else:
                    shift = level_shift(shape, level)
                    start = desk[ADDRESS] >> shift << shift
                    if start < low:
                        low = start
                    high = start + (ONE << shift)
            page_put(pages, entry_line(shape, entry), False)
            desk[RESULT] += ONE
        elif is_table(shape, old, level):
            child = table_page(shape, old)
            line = PAGES + (child << 3)
            if load_relaxed(pages, line + COUNT) != 1:
                continue
            store_relaxed(pool, entry, u64(0))
            # The walk has left the child: its address is past the entry's range, or at its end.
            shift = level_shift(shape, level)
            invalidate_range(mmu, (desk[ADDRESS] - ONE) >> shift << shift, ONE << shift)
            page_put(pages, entry_line(shape, entry), False)
            store_relaxed(pages, line + HELD, u64(0))
            if not page_give(pages, child):
                fetch_add(mmu, UNSOUND, ONE)
    if high > low:
        invalidate_range(mmu, low, high - low)
    desk[PROGRESS] = desk[END]
    return OK
