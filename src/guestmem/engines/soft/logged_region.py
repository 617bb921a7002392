"""KVM_SET_USER_MEMORY_REGION for slots that log, or did: phase by phase, since bitmaps come and go between the phases.

Before a set is published its new slots have their bitmaps; after it the table follows: write protection and splits when
logging begins, blocks again when it ends. Slots that have nothing to do with logging go by ``region``, in one call.
Source: ``kvm_set_memslot()``, ``kvm_mmu_slot_apply_flags()``, Linux 6.18.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...errors import MemslotError
from ...memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Change, ChangeKind, classify
from ...memslots.phases import FLAGS_BAD, GFN_WRAPS
from ...memslots.refusal import refusal

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["set_logged_region"]

_USER_FLAGS, _FRAMES = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY, 1 << 52


def set_logged_region(engine: SoftEngine, change: Change) -> ChangeKind:
    """One change of a slot that logs before it or after it; as ``region.set_memory_region``."""
    with engine.update(change.as_id) as update:
        kind = _kind(engine, change)
        if kind in {ChangeKind.DELETE, ChangeKind.MOVE}:
            update.invalidate(change.slot)
            update.swap()
            update.flush()
        if kind is not ChangeKind.NOTHING:
            update.stage(change)
            update.swap()
        if kind is ChangeKind.FLAGS_ONLY:
            update.flush()
    return kind


def _kind(engine: SoftEngine, change: Change) -> ChangeKind:
    """Which kind it is; MemslotError for what KVM refuses before it invalidates the slot."""
    memslots = engine.memslots
    kind = classify(change, memslots.by_id(change.slot, change.as_id))
    if kind is ChangeKind.MOVE:
        if change.flags & ~_USER_FLAGS:
            raise refusal(memslots, int(FLAGS_BAD), change, memslots.max_slots)
        if change.base_gfn + change.npages >= _FRAMES:
            raise refusal(memslots, int(GFN_WRAPS), change, memslots.max_slots)
        for slot in memslots.overlapping(change.base_gfn, change.base_gfn + change.npages, change.as_id):
            if slot.id != change.slot:
                raise MemslotError(errno.EEXIST, f"slot {change.slot}: its new frames overlap {slot!r}")
    return kind
