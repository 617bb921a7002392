"""Who frees a table that was taken away, and when: the four disciplines.

- rcu: the taker puts the whole subtree aside, as it is; after a grace period one traversal frees it by its contents
  then (Linux since 6.2).
- lock_subtree: the taker locks every entry below; each page waits for its own grace period (RFC, April 2022).
- rwlock: a shared walk never takes a table away (EBUSY); an exclusive one frees at once.
- walk_refs: the taker drops the link's reference; the last walker inside frees.

Exclusive operations free at once in all of them: no shared walk is inside. Linux: ``stage2_free_unlinked_table()``,
``arch/arm64/kvm/mmu.c``.
"""

from __future__ import annotations

from ..atomics import fetch_add, load_relaxed, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, u64
from ..rcu.deferred import defer, reclaim, reclaim_wait
from ..rcu.srcu import srcu_start
from .free_list import page_give
from .layout import (
    DEAD,
    DISCIPLINE,
    EBUSY,
    ENOMEM,
    FLAGS,
    LAST_LEVEL,
    LEVEL,
    LOCK_SUBTREE,
    OK,
    PAGES,
    QUEUE_BASE,
    QUEUE_CAPACITY,
    QUEUE_WORDS,
    RCU,
    RECLAIMED,
    RWLOCK,
    SHARED,
    SRCU_BASE,
    STATE,
    UNSOUND,
    VCPUS,
    WALK_REFS,
    WALKER,
)
from .lock_subtree import lock_subtree
from .refs import release_page
from .unlinked import free_unlinked, tree_pages
from .words import Table

__all__ = ["may_unlink", "reclaim_tables", "unlink_table"]


@compiled
def _queue(mmu: Words, desk: Own) -> U64:
    """Where this walker's queue of deferred pages starts."""
    return load_relaxed(mmu, QUEUE_BASE) + desk[WALKER] * load_relaxed(mmu, QUEUE_WORDS)


@compiled
def may_unlink(table: Table) -> U64:
    """Whether the visited table may be taken away: OK, EBUSY (only exclusively) or ENOMEM (reclaim first)."""
    shape, _pool, _pages, mmu, desk = table
    if desk[FLAGS] & SHARED == 0:
        return OK
    discipline = load_relaxed(mmu, DISCIPLINE)
    if discipline == RWLOCK:
        return EBUSY
    if discipline == WALK_REFS:
        return OK
    queue = _queue(mmu, desk)
    waiting = load_relaxed(mmu, queue + ONE) - load_relaxed(mmu, queue)
    wanted = tree_pages(shape, desk[LEVEL], shape[LAST_LEVEL]) if discipline == LOCK_SUBTREE else ONE
    return OK if waiting + wanted <= load_relaxed(mmu, QUEUE_CAPACITY) else ENOMEM


@compiled
def unlink_table(table: Table, page: U64) -> None:
    """Dispose of a table whose entry was broken by this walker; ``may_unlink`` said OK before."""
    shape, pool, pages, mmu, desk = table
    if desk[FLAGS] & SHARED == 0:
        free_unlinked(shape, pool, pages, mmu, page)
        return
    discipline = load_relaxed(mmu, DISCIPLINE)
    if discipline == WALK_REFS:
        release_page(shape, pool, pages, mmu, page)
    elif discipline == LOCK_SUBTREE:
        lock_subtree(shape, pool, pages, mmu, _queue(mmu, desk), page)
    else:
        store_relaxed(pages, PAGES + (page << 3) + STATE, DEAD)
        cookie = srcu_start(mmu, load_relaxed(mmu, SRCU_BASE))
        if not defer(mmu, _queue(mmu, desk), load_relaxed(mmu, QUEUE_CAPACITY), cookie, page):
            fetch_add(mmu, UNSOUND, ONE)


@compiled(nogil=True)
def reclaim_tables(table: Table, wait: bool) -> U64:
    """Free what this walker put aside and whose grace period is over; returns the number of pages.

    ``wait``: all of it, after waiting for the readers. Outside read-side sections and without the lock.
    """
    shape, pool, pages, mmu, desk = table
    freed = u64(0)
    discipline = load_relaxed(mmu, DISCIPLINE)
    if discipline > LOCK_SUBTREE:
        return freed
    queue = _queue(mmu, desk)
    capacity = load_relaxed(mmu, QUEUE_CAPACITY)
    srcu = load_relaxed(mmu, SRCU_BASE)
    readers = load_relaxed(mmu, VCPUS)
    while True:
        if wait:
            count = reclaim_wait(mmu, queue, capacity, mmu, srcu, readers, desk, ONE)
        else:
            count = reclaim(mmu, queue, capacity, mmu, srcu, readers, desk, ONE)
        if count == 0:
            return freed
        if discipline == RCU:
            freed += free_unlinked(shape, pool, pages, mmu, desk[RECLAIMED])
        elif page_give(pages, desk[RECLAIMED]):
            freed += ONE
        else:
            fetch_add(mmu, UNSOUND, ONE)
