"""Where translations are invalidated: the one place that a TLB model hangs on to.

Every operation that takes a valid descriptor away, or takes rights from it, calls one of these functions between
break and make. For now they count and remember the last range; a model of the TLBs replaces their bodies and may then
say at each call whether the level hint or range was enough. They may wait until no vCPU in the guest can use the old
translation; walkers are outside the guest, so none is waited for. Names and duties: Linux
``arch/arm64/kvm/hyp/vhe/tlb.c``.

Layout, from word TLB of a table's words: +0 by IPA, +1 by IPA on this vCPU only, +2 by range, +3 all of the table,
+4 start, +5 size and +6 level of the last one (level 4: no hint), +7 pages in all ranges.
"""

from __future__ import annotations

from ..atomics import fetch_add, store_relaxed
from ..compiled import U64, Words, compiled, const
from .layout import TLB

__all__ = ["BY_ALL", "BY_IPA", "BY_IPA_LOCAL", "BY_RANGE", "invalidate_all", "invalidate_ipa", "invalidate_range"]

BY_IPA, BY_IPA_LOCAL, BY_RANGE, BY_ALL = const(0), const(1), const(2), const(3)
"""What is counted, and the counter's word from TLB."""
_START, _SIZE, _LEVEL = const(4), const(5), const(6)
_NO_HINT = const(4)
_ONE = const(1)


@compiled
def invalidate_ipa(mmu: Words, kind: U64, ipa: U64, level: U64) -> None:
    """Invalidate the leaf for ``ipa``, which was at ``level`` (a wrong level invalidates nothing).

    ``kind``: BY_IPA for all vCPUs, which returns when none can use the old leaf; BY_IPA_LOCAL for the calling one.
    """
    fetch_add(mmu, TLB + kind, _ONE)
    store_relaxed(mmu, TLB + _START, ipa)
    store_relaxed(mmu, TLB + _SIZE, _ONE)
    store_relaxed(mmu, TLB + _LEVEL, level)


@compiled
def invalidate_range(mmu: Words, start: U64, size: U64) -> None:
    """Invalidate leaves of all levels and walk caches in ``[start, start + size)`` bytes, on all vCPUs, no hint.

    For a table that was taken away, ``start`` is the first address of its entry, not the one that faulted.
    """
    fetch_add(mmu, TLB + BY_RANGE, _ONE)
    store_relaxed(mmu, TLB + _START, start)
    store_relaxed(mmu, TLB + _SIZE, size)
    store_relaxed(mmu, TLB + _LEVEL, _NO_HINT)


@compiled
def invalidate_all(mmu: Words) -> None:
    """Invalidate everything of this table (its VMID), on all vCPUs."""
    fetch_add(mmu, TLB + BY_ALL, _ONE)
