"""Discipline walk_refs: a walker holds each table page on its way down, so that pages are freed without a grace period.

The count HELD lies in ``pages``, which is never unmapped: one for the link from the parent, one for each walker
inside. The rule, and why it is safe against races: ``docs/stage2.md``. Idea: left open on the list, April 2022, as
"not sure how to make this race-safe".
"""

from __future__ import annotations

from ..atomics import compare_exchange, fetch_add, load_acquire, load_relaxed, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .entry import is_counted, is_table, table_page
from .free_list import page_give
from .layout import COUNT, ENTRY_LEVEL, HELD, NEXT, PAGE_SHIFT, PAGES, STRIDE, UNSOUND

__all__ = ["hold_child", "release_page"]

_THREE = const(3)
_MINUS_ONE = const(0xFFFFFFFFFFFFFFFF)


@compiled
def hold_child(shape: Own, pool: Words, pages: Words, mmu: Words, entry: U64, descriptor: U64) -> bool:
    """Hold the table that ``entry`` was seen to point to; False if it no longer does.

    The caller holds the page of ``entry``, or it is the root. A page at 0 is being freed and cannot be held. One above
    0 may be another table by now, or the same one unlinked: so the entry is read again, after the page is held. If it
    is unchanged, the link is there, and its reference with it.
    """
    page = table_page(shape, descriptor)
    held = PAGES + (page << 3) + HELD
    while True:
        seen = load_relaxed(pages, held)
        if seen == 0:
            return False
        if compare_exchange(pages, held, seen, seen + ONE) == seen:
            break
    if load_acquire(pool, entry) == descriptor:
        return True
    release_page(shape, pool, pages, mmu, page)
    return False


@compiled
def release_page(shape: Own, pool: Words, pages: Words, mmu: Words, page: U64) -> None:
    """Drop one reference; who drops the last frees the page and drops its links to its children, and so on down.

    O(1), or O(entries) a page freed. The pages of one call hang on a chain through NEXT, so there is no recursion.
    """
    if fetch_add(pages, PAGES + (page << 3) + HELD, _MINUS_ONE) != 1:
        return
    chain = page + ONE
    store_relaxed(pages, PAGES + (page << 3) + NEXT, u64(0))
    while chain != 0:
        dead = chain - ONE
        line = PAGES + (dead << 3)
        chain = load_relaxed(pages, line + NEXT)
        level = load_relaxed(pages, line + ENTRY_LEVEL) + ONE
        entry = dead << (shape[PAGE_SHIFT] - _THREE)
        end = entry + (ONE << shape[STRIDE])
        references = ONE
        while entry < end:
            descriptor = load_acquire(pool, entry)
            if is_counted(shape, descriptor):
                references += ONE
                if is_table(shape, descriptor, level):
                    child = table_page(shape, descriptor)
                    below = PAGES + (child << 3)
                    if fetch_add(pages, below + HELD, _MINUS_ONE) == 1:
                        store_relaxed(pages, below + NEXT, chain)
                        chain = child + ONE
            entry += ONE
        if load_relaxed(pages, line + COUNT) != references or not page_give(pages, dead):
            fetch_add(mmu, UNSOUND, ONE)
