"""What stands above slots: overlays, each one frame that shows another page; and ranges where rights are denied.

The words are few and one update's: it adds entries, each inside an invalidation of its frames, and takes them away when
its slots say the same. A fault reads them after the invalidation sequence and before the slots, so what it maps from
entries that have changed since is not mapped (``must_retry``); what it exits for is guarded by the number in ABOVE.
Ideas: KVM_SET_PLANE_MEMORY_OVERLAY (David Woodhouse, linux-kernel, 2026); KVM_MEMORY_ATTRIBUTE_NR, NW and NX (Nicolas
Saenz Julienne, kvm, June 2024).
"""

from __future__ import annotations

from ...atomics import load_acquire, load_relaxed, store_release
from ...compiled import U64, Words, compiled, const, u64
from .layout import ABOVE, ABOVE_ENTRIES

__all__ = ["CHANGED", "NR", "NW", "NX", "above_add", "above_clear", "find_above"]

NR, NW, NX = const(1), const(2), const(4)
"""Reads, writes, fetches are denied: KVM_MEMORY_ATTRIBUTE_NR, NW and NX; NW is also the bit of KVM_MEM_READONLY."""
CHANGED = const(8)
"""What ``find_above`` says beside a page's address, rights that are denied, and 0: entries have changed, look again."""

_ONE = const(1)
_ENTRY = const(4)
_COUNT = const(255)
_PAGE_SHIFT = const(12)


@compiled
def find_above(vm: Words, above: U64, as_id: U64, gfn: U64) -> U64:
    """What stands above a frame, by ``above``, the value of ABOVE just acquired: a host address, NR | NW | NX, or 0."""
    found = u64(0)
    left = above & _COUNT
    where = ABOVE_ENTRIES
    while left != 0:
        # Acquire keeps the look at ABOVE below after these loads.
        start = load_acquire(vm, where)
        end = load_acquire(vm, where + _ONE)
        what = load_acquire(vm, where + u64(2))
        if start <= gfn < end and load_acquire(vm, where + u64(3)) == as_id:
            found = what if what < CHANGED else what + ((gfn - start) << _PAGE_SHIFT)
        where += _ENTRY
        left -= _ONE
    return CHANGED if load_relaxed(vm, ABOVE) != above else found


@compiled
def above_add(vm: Words, start: U64, end: U64, what: U64, as_id: U64) -> None:
    """One more entry; its frames are being invalidated. Release: who acquires ABOVE sees it."""
    above = load_relaxed(vm, ABOVE)
    where = ABOVE_ENTRIES + (above & _COUNT) * _ENTRY
    store_release(vm, where, start)
    store_release(vm, where + _ONE, end)
    store_release(vm, where + u64(2), what)
    store_release(vm, where + u64(3), as_id)
    store_release(vm, ABOVE, above + (_COUNT + _ONE) + _ONE)


@compiled
def above_clear(vm: Words) -> None:
    """No entries any more."""
    store_release(vm, ABOVE, (load_relaxed(vm, ABOVE) & ~_COUNT) + _COUNT + _ONE)
