"""Zap a range, or protect it against writes, as memslot updates do: one invalidation for all that goes.

Where ``unmap`` removes leaf after leaf, a zap takes whole tables of pages away, and frees them when the invalidation
is over. Tables that reach beyond the range stay, empty or not, so that the invalidation need not be wider than it. A
block that lies only partly inside goes as a whole. Faults that looked before map nothing (``retry``).
Idea: ``kvm_tdp_mmu_zap_leafs()`` and ``kvm_mmu_zap_all_fast()``, Linux ``arch/x86/kvm/mmu``, and
``kvm_stage2_unmap_range()``, ``arch/arm64/kvm/mmu.c``.
"""

from __future__ import annotations

from ..atomics import load_relaxed, store_relaxed
from ..compiled import ONE, U64, compiled, u64
from .entry import entry_line, is_table, level_shift, page_put, table_page
from .invalidate import invalidate_all, invalidate_range
from .layout import (
    ADDRESS,
    COUNT,
    ENTRY,
    FIND,
    IPA_END,
    LAST_LEVEL,
    LEAF,
    LEVEL,
    LOCK_BASE,
    NEXT,
    OK,
    OLD,
    PAGE_SHIFT,
    PAGES,
    RESULT,
    TABLE_POST,
    TABLE_PRE,
    TLB_BASE,
    VALID,
    VCPUS,
)
from .protect import write_protect_range
from .retry import invalidate_begin, invalidate_end
from .rwlock import write_lock, write_unlock
from .tlb_layout import BY_BYTES
from .tlbi import log_invalidation
from .unlinked import free_unlinked
from .walk import DONE, lookup, walk_begin, walk_step
from .words import Table

__all__ = ["protect", "zap", "zap_range"]


@compiled
def _put_aside(table: Table, chain: U64) -> U64:
    """Clear the visited entry and put its table on the chain; returns the new chain."""
    shape, pool, pages, _mmu, desk = table
    child = table_page(shape, desk[OLD])
    store_relaxed(pool, desk[ENTRY], u64(0))
    page_put(pages, entry_line(shape, desk[ENTRY]), False)
    store_relaxed(pages, PAGES + (child << 3) + NEXT, chain)
    return child + ONE


@compiled
def zap_range(table: Table, ipa: U64, size: U64, wait: bool) -> U64:
    """Remove all translations that ``[ipa, ipa + size)`` touches, and the tables all inside; returns how many.

    One invalidation, after which the tables are freed. Without ``wait`` nobody waits for vCPUs, and no table is
    removed, since they may still walk it. Bad ranges do nothing. Exclusive. O(entries in the range's tables).
    """
    shape, pool, pages, mmu, desk = table
    flags = LEAF | TABLE_PRE | TABLE_POST if wait else LEAF
    if walk_begin(table, ipa, size, flags) != OK:
        return u64(0)
    end = ipa + size
    last = shape[LAST_LEVEL]
    zapped = u64(0)
    chain = u64(0)
    low = end
    high = ipa
    while True:
        visit = walk_step(table)
        if visit == DONE:
            break
        old = desk[OLD]
        level = desk[LEVEL]
        shift = level_shift(shape, level)
        # After its table was walked, the walk's address is past the entry, or at its end.
        start = (desk[ADDRESS] - ONE if visit == TABLE_POST else desk[ADDRESS]) >> shift << shift
        if visit == LEAF:
            if old & shape[VALID] == 0:
                continue
            store_relaxed(pool, desk[ENTRY], u64(0))
            page_put(pages, entry_line(shape, desk[ENTRY]), False)
            zapped += ONE
        elif not is_table(shape, old, level) or start < ipa or end - start < ONE << shift:
            continue
        elif visit == TABLE_PRE:
            if level + ONE != last:
                continue
            zapped += load_relaxed(pages, PAGES + (table_page(shape, old) << 3) + COUNT) - ONE
            chain = _put_aside(table, chain)
        elif load_relaxed(pages, PAGES + (table_page(shape, old) << 3) + COUNT) == 1:
            chain = _put_aside(table, chain)
        else:
            continue
        if start < low:
            low = start
        if start + (ONE << shift) > high:
            high = start + (ONE << shift)
    if low < high:
        if not wait:
            hub = load_relaxed(mmu, TLB_BASE)
            if hub != 0:
                log_invalidation(mmu, hub, BY_BYTES, low, high)
        elif size == shape[IPA_END]:
            invalidate_all(mmu)
        else:
            invalidate_range(mmu, low, high - low)
    while chain != 0:
        page = chain - ONE
        chain = load_relaxed(pages, PAGES + (page << 3) + NEXT)
        free_unlinked(shape, pool, pages, mmu, page)
    return zapped


@compiled
def _cut(table: Table, at: U64, start: U64, end: U64) -> U64:
    """Zap the block around ``at`` if it lies only partly in ``[start, end)``; returns how many went."""
    shape, desk = table.shape, table.desk
    page_shift = shape[PAGE_SHIFT]
    if lookup(table, at) != OK:
        return u64(0)
    shift = level_shift(shape, desk[FIND + ONE])
    first = at >> shift << shift
    if first >= start and first + (ONE << shift) <= end:
        return u64(0)
    return zap_range(table, at >> page_shift << page_shift, ONE << page_shift, True)


@compiled(nogil=True)
def zap(table: Table, ipa: U64, size: U64, wait: bool) -> U64:
    """``zap_range`` with the lock, as an invalidation that faults notice. What lies beyond the input is left out."""
    shape, mmu = table.shape, table.mmu
    if ipa >= shape[IPA_END]:
        return u64(0)
    if size > shape[IPA_END] - ipa:
        size = shape[IPA_END] - ipa
    lock = load_relaxed(mmu, LOCK_BASE)
    write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
    invalidate_begin(mmu, ipa, ipa + size)
    zapped = zap_range(table, ipa, size, wait)
    invalidate_end(mmu)
    write_unlock(mmu, lock)
    return zapped


@compiled(nogil=True)
def protect(table: Table, ipa: U64, size: U64, wait: bool) -> U64:
    """Take the right to write from ``[ipa, ipa + size)``, with the lock; returns how many leaves lost it or went.

    A block that reaches beyond the range is zapped: its other part must not lose, nor later lift, what this part may.
    """
    shape, _pool, _pages, mmu, desk = table
    if ipa >= shape[IPA_END]:
        return u64(0)
    if size > shape[IPA_END] - ipa:
        size = shape[IPA_END] - ipa
    end = ipa + size
    lock = load_relaxed(mmu, LOCK_BASE)
    write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
    invalidate_begin(mmu, ipa, end)
    changed = _cut(table, ipa, ipa, end)
    changed += _cut(table, end - ONE, ipa, end)
    if write_protect_range(table, ipa, size) == OK and desk[RESULT] != 0:
        changed += desk[RESULT]
        hub = load_relaxed(mmu, TLB_BASE)
        if wait:
            invalidate_range(mmu, ipa, size)
        elif hub != 0:
            log_invalidation(mmu, hub, BY_BYTES, ipa, end)
    invalidate_end(mmu)
    write_unlock(mmu, lock)
    return changed
