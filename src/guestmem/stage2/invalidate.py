"""Where translations are invalidated: the one place that the TLBs hang on to.

Every operation that takes a valid descriptor away, or takes rights from it, calls one of these functions between
break and make. They count, and if TLBs are attached to the table (``tlb.Tlb``) they return when no vCPU in the guest
can use what was invalidated. Names and duties: Linux ``arch/arm64/kvm/hyp/vhe/tlb.c``.

Layout, from word TLB of a table's words: +0 by IPA, +1 by IPA on this vCPU only, +2 by range, +3 all of the table,
+4 start, +5 size and +6 level of the last one (level 4: no hint), +7 range invalidations that were too long for one
instruction and took the whole table.
"""

from __future__ import annotations

from ..atomics import fetch_add, load_relaxed, store_relaxed
from ..compiled import ONE, TWO, U64, Words, compiled, const, u64
from .layout import TLB, TLB_BASE
from .tlb_layout import BY_ADDRESS, BY_BYTES, EVERYTHING, SEQUENCE
from .tlbi import forget_mine, log_invalidation, wait_for_vcpus

__all__ = [
    "BY_ALL",
    "BY_IPA",
    "BY_IPA_LOCAL",
    "BY_RANGE",
    "invalidate_all",
    "invalidate_ipa",
    "invalidate_local",
    "invalidate_range",
    "log_range",
    "logged",
    "wait_for_logged",
]

BY_IPA, BY_IPA_LOCAL, BY_RANGE, BY_ALL = const(0), const(1), const(2), const(3)
"""What is counted, and the counter's word from TLB."""
_START, _SIZE, _LEVEL, _TOO_LONG = const(4), const(5), const(6), const(7)
_NO_HINT = const(4)
_LONGEST = const(1 << 33)
"""Bytes that one range instruction can name: 2**21 pages of 4K (FEAT_TLBIRANGE: NUM 31, SCALE 3)."""


@compiled(nogil=True)
def invalidate_ipa(mmu: Words, ipa: U64, level: U64) -> None:
    """Invalidate the leaf for ``ipa``, which was at ``level`` (a wrong level invalidates nothing), on all vCPUs."""
    fetch_add(mmu, TLB + BY_IPA, ONE)
    store_relaxed(mmu, TLB + _START, ipa)
    store_relaxed(mmu, TLB + _SIZE, ONE)
    store_relaxed(mmu, TLB + _LEVEL, level)
    hub = load_relaxed(mmu, TLB_BASE)
    if hub != 0:
        wait_for_vcpus(mmu, hub, log_invalidation(mmu, hub, BY_ADDRESS | level << 8, ipa, ipa + ONE), TWO)


@compiled
def invalidate_local(mmu: Words, walker: U64, ipa: U64, level: U64) -> None:
    """Invalidate the leaf for ``ipa`` on the calling vCPU only, which is walker number ``walker``. Waits for nobody."""
    fetch_add(mmu, TLB + BY_IPA_LOCAL, ONE)
    store_relaxed(mmu, TLB + _START, ipa)
    store_relaxed(mmu, TLB + _SIZE, ONE)
    store_relaxed(mmu, TLB + _LEVEL, level)
    forget_mine(mmu, walker, ipa, level)


@compiled
def logged(mmu: Words, hub: U64) -> U64:
    """Records so far in the log at ``hub``, TLB_BASE of ``mmu``; that is 0 where no TLBs are attached."""
    return load_relaxed(mmu, hub + SEQUENCE) if hub != 0 else u64(0)


@compiled
def log_range(mmu: Words, hub: U64, start: U64, size: U64) -> U64:
    """What ``invalidate_range`` does before it waits; returns the number of records then. ``hub``: as of ``logged``."""
    fetch_add(mmu, TLB + BY_RANGE, ONE)
    store_relaxed(mmu, TLB + _START, start)
    store_relaxed(mmu, TLB + _SIZE, size)
    store_relaxed(mmu, TLB + _LEVEL, _NO_HINT)
    if hub == 0:
        return u64(0)
    if size > _LONGEST:
        fetch_add(mmu, TLB + _TOO_LONG, ONE)
        return log_invalidation(mmu, hub, EVERYTHING, u64(0), u64(0))
    return log_invalidation(mmu, hub, BY_BYTES, start, start + size)


@compiled
def wait_for_logged(mmu: Words, hub: U64, before: U64) -> None:
    """Complete, with one wait, what ``log_range`` logged since there were ``before`` records.

    Who else logged meanwhile waits for itself: vCPUs have applied that, too, by then.
    """
    last = logged(mmu, hub)
    if last != before:
        wait_for_vcpus(mmu, hub, last, last - before)


@compiled(nogil=True)
def invalidate_range(mmu: Words, start: U64, size: U64) -> None:
    """Invalidate leaves of all levels and walk caches in ``[start, start + size)`` bytes, on all vCPUs, no hint.

    For a table that was taken away, ``start`` is the first address of its entry, not the one that faulted. A range
    that no one instruction can name takes everything.
    """
    hub = load_relaxed(mmu, TLB_BASE)
    last = log_range(mmu, hub, start, size)
    if hub != 0:
        wait_for_vcpus(mmu, hub, last, ONE if size > _LONGEST else TWO)


@compiled(nogil=True)
def invalidate_all(mmu: Words) -> None:
    """Invalidate everything of this table (its VMID), on all vCPUs."""
    fetch_add(mmu, TLB + BY_ALL, ONE)
    hub = load_relaxed(mmu, TLB_BASE)
    if hub != 0:
        wait_for_vcpus(mmu, hub, log_invalidation(mmu, hub, EVERYTHING, u64(0), u64(0)), ONE)
