"""Discipline lock_subtree: whoever takes a table away locks every entry below it, so that nothing is added there.

The first form of KVM's parallel faults (Oliver Upton, RFC of April 2022): every page still waits for a grace period
of its own. In the merged form (discipline rcu) the subtree is left alone until then. Waiting goes only downwards in
the tree, so two walkers never wait for each other.
"""

from __future__ import annotations

from ..atomics import exchange, fence, fetch_add, load_acquire, load_relaxed, store_relaxed, wait
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from ..rcu.deferred import defer
from ..rcu.srcu import srcu_start
from .entry import is_counted, is_table, page_put, table_page
from .layout import (
    COUNT,
    DEAD,
    ENTRY_LEVEL,
    HELD,
    LOCKED,
    NEXT,
    PAGE_SHIFT,
    PAGES,
    QUEUE_CAPACITY,
    RETRIES,
    RETRY_WAITERS,
    SRCU_BASE,
    STATE,
    STRIDE,
    UNSOUND,
)

__all__ = ["lock_entry", "lock_subtree"]

_THREE = const(3)
_MINUS_ONE = const(0xFFFFFFFFFFFFFFFF)


@compiled
def lock_entry(shape: Own, pool: Words, mmu: Words, entry: U64) -> U64:
    """Lock an entry of an unlinked table for good; returns what it was. Waits for the walker that has it locked."""
    locked = shape[LOCKED]
    seen = exchange(pool, entry, locked)
    while seen == locked:
        fetch_add(mmu, RETRY_WAITERS, ONE)
        fence()  # counted as waiting before the second look: see make_entry
        retries = load_acquire(mmu, RETRIES)
        seen = exchange(pool, entry, locked)
        if seen == locked:
            wait(mmu, RETRIES, retries)
            seen = exchange(pool, entry, locked)
        fetch_add(mmu, RETRY_WAITERS, _MINUS_ONE)
    return seen


@compiled
def lock_subtree(shape: Own, pool: Words, pages: Words, mmu: Words, queue: U64, root: U64) -> None:
    """Lock every entry below table page ``root`` and put each page aside in ``queue``. O(pages * entries)."""
    chain = root + ONE
    done = u64(0)
    store_relaxed(pages, PAGES + (root << 3) + NEXT, u64(0))
    while chain != 0:
        page = chain - ONE
        line = PAGES + (page << 3)
        chain = load_relaxed(pages, line + NEXT)
        level = load_relaxed(pages, line + ENTRY_LEVEL) + ONE
        entry = page << (shape[PAGE_SHIFT] - _THREE)
        end = entry + (ONE << shape[STRIDE])
        while entry < end:
            descriptor = lock_entry(shape, pool, mmu, entry)
            if is_counted(shape, descriptor):
                page_put(pages, line, True)
                if is_table(shape, descriptor, level):
                    child = table_page(shape, descriptor)
                    store_relaxed(pages, PAGES + (child << 3) + NEXT, chain)
                    chain = child + ONE
            entry += ONE
        if load_acquire(pages, line + COUNT) != 1:
            fetch_add(mmu, UNSOUND, ONE)
        store_relaxed(pages, line + STATE, DEAD)
        store_relaxed(pages, line + HELD, u64(0))
        store_relaxed(pages, line + NEXT, done)
        done = page + ONE
    while done != 0:
        page = done - ONE
        done = load_relaxed(pages, PAGES + (page << 3) + NEXT)
        cookie = srcu_start(mmu, load_relaxed(mmu, SRCU_BASE))
        if not defer(mmu, queue, load_relaxed(mmu, QUEUE_CAPACITY), cookie, page):
            fetch_add(mmu, UNSOUND, ONE)
