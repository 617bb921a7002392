"""Zap a range, or protect it against writes, as memslot updates do: one invalidation for all that goes.

Where ``unmap`` removes leaf after leaf, a zap takes whole tables of pages away, and frees them when the invalidation
is over. Tables that reach beyond the range stay, empty or not, so that the invalidation need not be wider than it. A
block that lies only partly inside goes as a whole. Faults that looked before map nothing (``retry``).
Idea: ``kvm_tdp_mmu_zap_leafs()`` and ``kvm_mmu_zap_all_fast()``, Linux ``arch/x86/kvm/mmu``, and
``kvm_stage2_unmap_range()``, ``arch/arm64/kvm/mmu.c``.
"""

from __future__ import annotations

from typing import NamedTuple

from ..atomics import load_relaxed, store_relaxed
from ..compiled import ONE, TWO, U64, Own, Words, compiled, u64
from .entry import entry_line, is_table, level_shift, page_put, table_page
from .invalidate import invalidate_all, invalidate_range, log_range, logged, wait_for_logged
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
    RANGE_WORDS,
    RESULT,
    TABLE_POST,
    TABLE_PRE,
    TAKES_ALL,
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

__all__ = ["zap", "zap_range", "zap_ranges"]


class Taken(NamedTuple):
    """What was cleared in a table, and is not invalidated yet."""

    gone: U64
    """Translations."""
    chain: U64
    """Tables that are to be freed then: a page number + 1, 0 for the end."""
    low: U64
    high: U64
    """What is to be invalidated lies in ``[low, high)``, bytes."""


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
def _take(table: Table, ipa: U64, size: U64, tables: bool, chain: U64) -> Taken:
    """Clear all leaves that ``[ipa, ipa + size)`` touches; with ``tables``, put aside those that are all inside."""
    shape, pool, pages, _mmu, desk = table
    if walk_begin(table, ipa, size, LEAF | TABLE_PRE | TABLE_POST if tables else LEAF) != OK:
        return Taken(u64(0), chain, ipa, ipa)
    end = ipa + size
    last = shape[LAST_LEVEL]
    zapped = u64(0)
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
    return Taken(zapped, chain, low, high)


@compiled
def _free(table: Table, chain: U64) -> None:
    """Free the tables on a chain, which no vCPU walks any more."""
    while chain != 0:
        page = chain - ONE
        chain = load_relaxed(table.pages, PAGES + (page << 3) + NEXT)
        free_unlinked(table.shape, table.pool, table.pages, table.mmu, page)


@compiled
def zap_range(table: Table, ipa: U64, size: U64, wait: bool) -> U64:
    """Remove all translations that ``[ipa, ipa + size)`` touches, and the tables all inside; returns how many.

    One invalidation, after which the tables are freed. Without ``wait`` nobody waits for vCPUs, and no table is
    removed, since they may still walk it. Bad ranges do nothing. Exclusive. O(entries in the range's tables).
    """
    mmu = table.mmu
    taken = _take(table, ipa, size, wait, u64(0))
    if taken.low < taken.high:
        if not wait:
            hub = load_relaxed(mmu, TLB_BASE)
            if hub != 0:
                log_invalidation(mmu, hub, BY_BYTES, taken.low, taken.high)
        elif size == table.shape[IPA_END]:
            invalidate_all(mmu)
        else:
            invalidate_range(mmu, taken.low, taken.high - taken.low)
    _free(table, taken.chain)
    return taken.gone


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


@compiled
def _protect(table: Table, start: U64, end: U64, chain: U64) -> Taken:
    """Take the right to write from ``[start, end)``; what lost it is not invalidated yet.

    A block that reaches beyond the range is zapped: its other part must not lose, nor later lift, what this part may.
    """
    cut = _cut(table, start, start, end)
    cut += _cut(table, end - ONE, start, end)
    lost = u64(0)
    if write_protect_range(table, start, end - start) == OK:
        lost = table.desk[RESULT]
    return Taken(cut + lost, chain, start, end if lost != 0 else start)


@compiled
def _last_frame(ranges: Own, entry: U64, frames: U64) -> U64:
    """The end of a range, or of the input."""
    return min(ranges[entry * RANGE_WORDS + ONE], frames)


@compiled
def _begin(mmu: Words, ranges: Own, count: U64, frames: U64) -> None:
    """``invalidate_begin`` of all between the first frame and the last of some ranges."""
    first = frames
    last = u64(0)
    entry = u64(0)
    while entry < count:
        first = min(first, ranges[entry * RANGE_WORDS])
        last = max(last, _last_frame(ranges, entry, frames))
        entry += ONE
    invalidate_begin(mmu, first << 12, last << 12)


@compiled(nogil=True)
def zap_ranges(table: Table, ranges: Own, count: U64, wait: bool) -> U64:
    """From ``count`` ranges take the right to write, or all; with the lock, as an invalidation that faults notice.

    ``ranges``, RANGE_WORDS each: first frame, end, TAKES_WRITES or TAKES_ALL; what lies beyond the input is left out.
    Returns how many translations went or lost the right. All is invalidated with one wait for vCPUs; only a block that
    lies partly in a range that loses the right to write is waited for by itself. Without ``wait`` as ``zap_range``.
    O(entries in the ranges' tables).
    """
    shape, mmu = table.shape, table.mmu
    frames = shape[IPA_END] >> 12
    lock = load_relaxed(mmu, LOCK_BASE)
    write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
    _begin(mmu, ranges, count, frames)
    hub = load_relaxed(mmu, TLB_BASE)
    before = logged(mmu, hub)
    changed = u64(0)
    chain = u64(0)
    entry = u64(0)
    while entry < count:
        start = ranges[entry * RANGE_WORDS] << 12
        end = _last_frame(ranges, entry, frames) << 12
        taken = Taken(u64(0), chain, start, start)
        if start < end:
            if ranges[entry * RANGE_WORDS + TWO] == TAKES_ALL:
                taken = _take(table, start, end - start, wait, chain)
            else:
                taken = _protect(table, start, end, chain)
        changed += taken.gone
        chain = taken.chain
        if taken.low < taken.high:
            if wait:
                log_range(mmu, hub, taken.low, taken.high - taken.low)
            elif hub != 0:
                log_invalidation(mmu, hub, BY_BYTES, taken.low, taken.high)
        entry += ONE
    if wait:
        wait_for_logged(mmu, hub, before)
    _free(table, chain)
    invalidate_end(mmu)
    write_unlock(mmu, lock)
    return changed
