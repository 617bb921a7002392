"""Whether a table holds owners' marks, so that no block is put over them unseen.

Linux's map does put one over them (its callers at EL2 look first, ``arch/arm64/kvm/hyp/nvhe/mem_protect.c``); here the
walk that would refuses.
"""

from __future__ import annotations

from ..atomics import load_acquire
from ..compiled import ONE, U64, Own, compiled, const
from .entry import is_table, table_page
from .layout import HOLDS, LOCKED, PAGE_SHIFT, STRIDE, VALID
from .refs import hold_child, release_page
from .words import Table

__all__ = ["is_mark", "table_holds_mark"]

_THREE = const(3)


@compiled(inline=True)
def is_mark(shape: Own, descriptor: U64) -> bool:
    """Whether a descriptor is an owner's mark: invalid, not empty, not LOCKED."""
    return descriptor & shape[VALID] == 0 and descriptor != 0 and descriptor != shape[LOCKED]


@compiled
def table_holds_mark(table: Table, entry: U64, descriptor: U64, level: U64) -> bool:
    """Whether the table that ``entry`` at ``level`` points to, or one below it, has a mark. O(entries below).

    Marks are made and removed exclusively. Looks two tables deep: there is no block above level 1. A walk that holds
    pages (walk_refs) holds these, too; a table that is gone by then was collapsed, and had no mark.
    """
    shape, pool, pages, mmu, desk = table
    hold = desk[HOLDS] != 0
    if hold and not hold_child(shape, pool, pages, mmu, entry, descriptor):
        return False
    found = False
    to_words = shape[PAGE_SHIFT] - _THREE
    entries = ONE << shape[STRIDE]
    below = level + ONE
    at = table_page(shape, descriptor) << to_words
    end = at + entries
    while at < end and not found:
        child = load_acquire(pool, at)
        if is_table(shape, child, below):
            if not hold or hold_child(shape, pool, pages, mmu, at, child):
                inner = table_page(shape, child) << to_words
                inner_end = inner + entries
                while inner < inner_end and not found:
                    found = is_mark(shape, load_acquire(pool, inner))
                    inner += ONE
                if hold:
                    release_page(shape, pool, pages, mmu, table_page(shape, child))
        else:
            found = is_mark(shape, child)
        at += ONE
    if hold:
        release_page(shape, pool, pages, mmu, table_page(shape, descriptor))
    return found
