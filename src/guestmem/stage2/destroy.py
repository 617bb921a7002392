"""Take a table down: every page goes back to the pool, and walks find nothing.

Idea: ``kvm_pgtable_stage2_destroy()``, Linux ``arch/arm64/kvm/hyp/pgtable.c``.
"""

from __future__ import annotations

from ..atomics import exchange, fetch_add, load_acquire, load_relaxed, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .entry import entry_line, is_counted, is_table, page_put, table_page
from .free_list import page_give
from .invalidate import invalidate_all
from .layout import COUNT, HELD, PAGE_SHIFT, PAGES, ROOT, ROOT_ENTRIES, START_LEVEL, UNSOUND
from .unlinked import free_unlinked

__all__ = ["destroy_table", "root_pages"]

_THREE = const(3)


@compiled
def root_pages(shape: Own) -> U64:
    """Pool pages that the root takes: a power of two."""
    entries = ONE << (shape[PAGE_SHIFT] - _THREE)
    return (shape[ROOT_ENTRIES] + entries - ONE) >> (shape[PAGE_SHIFT] - _THREE)


@compiled(nogil=True)
def destroy_table(shape: Own, pool: Words, pages: Words, mmu: Words) -> U64:
    """Free all pages; returns how many, 0 if it was destroyed before. Walks that begin from now on are EINVAL.

    Exclusive, with all queues of deferred pages empty. O(pages * entries).
    """
    root = exchange(mmu, ROOT, u64(0))
    if root == 0:
        return u64(0)
    invalidate_all(mmu)
    freed = u64(0)
    entry = (root - ONE) << (shape[PAGE_SHIFT] - _THREE)
    end = entry + shape[ROOT_ENTRIES]
    while entry < end:
        descriptor = load_acquire(pool, entry)
        if is_counted(shape, descriptor):
            store_relaxed(pool, entry, u64(0))
            if is_table(shape, descriptor, shape[START_LEVEL]):
                freed += free_unlinked(shape, pool, pages, mmu, table_page(shape, descriptor))
            page_put(pages, entry_line(shape, entry), False)
        entry += ONE
    page = root - ONE
    last = page + root_pages(shape)
    while page < last:
        line = PAGES + (page << 3)
        if load_relaxed(pages, line + COUNT) != 1:
            fetch_add(mmu, UNSOUND, ONE)
        store_relaxed(pages, line + HELD, u64(0))
        if not page_give(pages, page):
            fetch_add(mmu, UNSOUND, ONE)
        freed += ONE
        page += ONE
    return freed
