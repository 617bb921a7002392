"""The strict mode: at each use of an entry, whether a completed invalidation covers it.

An entry knows how much of the log its vCPU had applied when it was filled. A record after that which is complete, so
that its invalidator may have freed or reused what the entry leads to, and which covers the entry, makes the use a
finding. Judged by what was logged, not by what ``tlb_entries.forget`` does: an invalidation that is not applied, or
whose level hint misses the entry, is seen.
"""

from __future__ import annotations

from ..atomics import load_acquire, load_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .entry import is_table, level_shift, output_address, table_page
from .layout import (
    LAST_LEVEL,
    LOCK_BASE,
    LOCKED,
    PAGE_SHIFT,
    ROOT,
    START_LEVEL,
    STRIDE,
    TLB_BASE,
    TLB_RING,
    VALID,
)
from .tlb_layout import (
    BY_ADDRESS,
    BY_BYTES,
    ENTRY_SEEN,
    ENTRY_TARGET,
    EVERYTHING,
    FINDINGS,
    FIRST_IPA,
    FIRST_KIND,
    FIRST_LEVEL,
    FIRST_RECORD,
    KIND,
    NO_HINT,
    RECORD_DONE,
    RECORD_END,
    RECORD_START,
    SEEN,
    SEQUENCE,
    STALE_COMBINED,
    STALE_LEAF,
    STALE_WALK,
    STRICT,
    UNCHECKED,
)
from .tlbi import record_at

__all__ = ["finding", "look_at_use"]

_THREE = const(3)


@compiled
def finding(tlb: Own, kind: U64, ipa: U64, level: U64, record: U64) -> None:
    """Count a finding, and keep the first."""
    if tlb[FINDINGS] == 0:
        tlb[FIRST_KIND] = kind
        tlb[FIRST_IPA] = ipa
        tlb[FIRST_LEVEL] = level
        tlb[FIRST_RECORD] = record
    tlb[FINDINGS] += ONE


@compiled
def _covers(shape: Own, what: U64, start: U64, end: U64, kind: U64, low: U64, high: U64) -> bool:
    """Whether a record covers an entry of ``kind`` for ``[low, high)``.

    A hint means a leaf of that level: all of its addresses, whatever size the entry has.
    """
    record = what & KIND
    if record == EVERYTHING:
        return True
    if record == BY_BYTES:
        return low < end and start < high
    if record == BY_ADDRESS:
        hint = what >> 8
        if hint >= NO_HINT:
            return low <= start < high
        if kind == STALE_WALK or hint > shape[LAST_LEVEL]:
            return False
        shift = level_shift(shape, hint)
        return low < ((start >> shift) + ONE) << shift and start >> shift << shift < high
    return kind == STALE_COMBINED


@compiled
def _may_stand(shape: Own, pool: Words, mmu: Words, tlb: Own, ipa: U64, page: U64) -> bool:
    """Whether the page for ``ipa`` may be used though an invalidation with another level's hint covers it. O(levels).

    A walker inside a table that was taken away still breaks leaves there, and invalidates them by level and address.
    The block that stands there now is of another level, and that invalidation does not concern it. A wrong hint, too,
    leaves an entry of another level; but then the table maps its page elsewhere or not, and nobody is about to say so.
    """
    page_shift = shape[PAGE_SHIFT]
    at = shape[START_LEVEL]
    root = load_relaxed(mmu, ROOT)
    if root == 0:
        return False
    entry = ((root - ONE) << (page_shift - _THREE)) + (ipa >> level_shift(shape, at))
    descriptor = load_acquire(pool, entry)
    while is_table(shape, descriptor, at):
        at += ONE
        index = (ipa >> level_shift(shape, at)) & ((ONE << shape[STRIDE]) - ONE)
        descriptor = load_acquire(pool, (table_page(shape, descriptor) << (page_shift - _THREE)) + index)
    if descriptor == shape[LOCKED]:
        return True
    if descriptor & shape[VALID] != 0:
        shift = level_shift(shape, at)
        there = output_address(shape, descriptor) >> shift << shift
        if (there | (ipa & ((ONE << shift) - ONE))) >> page_shift == page:
            return True
    hub = load_relaxed(mmu, TLB_BASE)
    writer = load_acquire(mmu, load_relaxed(mmu, LOCK_BASE))
    return writer != 0 or load_acquire(mmu, hub + SEQUENCE) != tlb[SEEN]


@compiled
def _look(shape: Own, pool: Words, mmu: Words, tlb: Own, place: U64, kind: U64, ipa: U64, level: U64) -> bool:
    """``look_at_use`` where the log has gone on. O(records since)."""
    hub = load_relaxed(mmu, TLB_BASE)
    head = load_acquire(mmu, hub + SEQUENCE)
    ring = load_relaxed(mmu, TLB_RING)
    number = tlb[place + ENTRY_SEEN]
    shift = level_shift(shape, level)
    low = ipa >> shift << shift
    high = low + (ONE << shift)
    passed = True
    if head - number >= ring:
        tlb[UNCHECKED] += ONE
        number = head - ring + ONE
    while number < head:
        record = record_at(mmu, hub, number)
        if load_acquire(mmu, record + RECORD_DONE) == number + ONE:
            what = load_acquire(mmu, record)
            start = load_acquire(mmu, record + RECORD_START)
            end = load_acquire(mmu, record + RECORD_END)
            known = load_relaxed(mmu, hub + SEQUENCE) - number < ring
            covered = known and _covers(shape, what, start, end, kind, low, high)
            if covered and what & KIND == BY_ADDRESS and what >> 8 < NO_HINT and what >> 8 != level:
                page = tlb[place + ENTRY_TARGET]  # of a leaf, its first one
                if kind == STALE_LEAF:
                    page |= ipa & (high - low - ONE)
                covered = not _may_stand(shape, pool, mmu, tlb, ipa, page >> shape[PAGE_SHIFT])
            if covered:
                finding(tlb, kind, ipa, level, number)
                tlb[place] = u64(0)
                return False
        else:
            passed = False
        number += ONE
        if passed:
            tlb[place + ENTRY_SEEN] = number
    return True


@compiled(inline=True)
def look_at_use(shape: Own, pool: Words, mmu: Words, tlb: Own, place: U64, kind: U64, ipa: U64, level: U64) -> bool:
    """Whether an entry may be used; if not, it is a finding, and the entry is gone. True without strict mode."""
    if tlb[STRICT] == 0:
        return True
    hub = load_relaxed(mmu, TLB_BASE)
    if hub == 0 or load_acquire(mmu, hub + SEQUENCE) == tlb[place + ENTRY_SEEN]:
        return True
    return _look(shape, pool, mmu, tlb, place, kind, ipa, level)
