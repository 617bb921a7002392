"""Whether what a fault found out is still true when it maps: KVM's invalidation sequence.

A fault remembers the sequence before it looks at slots and host memory, and maps nothing if an invalidation of its
range is under way by then, or one has ended since. Idea: ``mmu_invalidate_seq``, ``mmu_invalidate_in_progress`` and
``mmu_invalidate_retry_gfn()``, Linux ``include/linux/kvm_host.h``.
"""

from __future__ import annotations

from ..atomics import load_acquire, load_relaxed, store_relaxed, store_release
from ..compiled import ONE, U64, Words, compiled
from .layout import INVALIDATE_END, INVALIDATE_SEQ, INVALIDATE_START, INVALIDATING

__all__ = ["invalidate_begin", "invalidate_end", "invalidate_seq", "must_retry"]


@compiled
def invalidate_seq(mmu: Words) -> U64:
    """The sequence, before all that a fault looks at."""
    return load_acquire(mmu, INVALIDATE_SEQ)


@compiled
def invalidate_begin(mmu: Words, start: U64, end: U64) -> None:
    """Bytes ``[start, end)`` are being invalidated; several at once share one range. The lock is held for writing."""
    count = load_relaxed(mmu, INVALIDATING)
    if count == 0 or start < load_relaxed(mmu, INVALIDATE_START):
        store_relaxed(mmu, INVALIDATE_START, start)
    if count == 0 or end > load_relaxed(mmu, INVALIDATE_END):
        store_relaxed(mmu, INVALIDATE_END, end)
    store_relaxed(mmu, INVALIDATING, count + ONE)


@compiled
def invalidate_end(mmu: Words) -> None:
    """One of them has ended: who looked before it looks again. The lock is held for writing."""
    store_release(mmu, INVALIDATE_SEQ, load_relaxed(mmu, INVALIDATE_SEQ) + ONE)
    store_relaxed(mmu, INVALIDATING, load_relaxed(mmu, INVALIDATING) - ONE)


@compiled
def must_retry(mmu: Words, seq: U64, start: U64, end: U64) -> bool:
    """Whether a fault that maps ``[start, end)`` and began at ``seq`` has to start again. The lock is held."""
    if load_relaxed(mmu, INVALIDATE_SEQ) != seq:
        return True
    under_way = load_relaxed(mmu, INVALIDATING) != 0
    return under_way and start < load_relaxed(mmu, INVALIDATE_END) and end > load_relaxed(mmu, INVALIDATE_START)
