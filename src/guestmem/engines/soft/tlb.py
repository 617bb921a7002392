"""A vCPU's TLB: direct-mapped, 256 pages, touched by its own thread only.

An entry is two words: ``gfn << 2 | writable << 1 | valid``, and the host address of the page.
"""

from __future__ import annotations

from ...compiled import U64, Own, compiled, const, u64
from .layout import TLB, TLB_ENTRIES, TLB_ENTRY

__all__ = ["tlb_fill", "tlb_flush", "tlb_lookup"]

_ONE = const(1)
_VALID, _WRITABLE = const(1), const(2)


@compiled
def tlb_lookup(own: Own, gfn: U64, writes: bool) -> U64:
    """Host address of the frame, or 0: no entry, or a write to one that is not writable. O(1)."""
    where = TLB + TLB_ENTRY * (gfn % TLB_ENTRIES)
    tag = own[where]
    if tag >> 2 != gfn or tag & _VALID == 0 or (writes and tag & _WRITABLE == 0):
        return u64(0)
    return own[where + _ONE]


@compiled
def tlb_fill(own: Own, gfn: U64, host: U64, writable: bool) -> None:
    """Cache a translation in place of what was there."""
    where = TLB + TLB_ENTRY * (gfn % TLB_ENTRIES)
    tag = (gfn << 2) | _VALID
    if writable:
        tag = tag | _WRITABLE
    own[where] = tag
    own[where + _ONE] = host


@compiled
def tlb_flush(own: Own) -> None:
    """Forget all translations. O(entries)."""
    entry = u64(0)
    while entry < TLB_ENTRIES:
        own[TLB + TLB_ENTRY * entry] = u64(0)
        entry += _ONE
