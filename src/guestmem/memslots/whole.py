"""One whole change in one call, as KVM_SET_USER_MEMORY_REGION does it, as far as no reader has to be waited for.

Source: ``kvm_set_memslot()``, ``kvm_create_memslot()``, ``kvm_delete_memslot()``, ``kvm_move_memslot()``, Linux 6.18.
"""

from __future__ import annotations

from ..compiled import U64, Own, Words, compiled, const, u64
from ..rcu.srcu import srcu_expired, srcu_start
from .edit import DELETE, MOVE, NOTHING
from .phases import bring, open_change, publish, settle, stage_asked

__all__ = ["UNFINISHED", "change_at_once", "swap_at_once"]

UNFINISHED = const(1 << 63)
"""Bit of what ``change_at_once`` returns: a reader is inside; PHASE says how far the change got."""


@compiled
def swap_at_once(memslots: Words, desk: Own, srcu: Words, readers: U64) -> bool:
    """Publish, and settle at once if no reader is inside; False if the caller has to wait and settle. O(readers)."""
    publish(memslots, desk)
    if not srcu_expired(srcu, u64(0), readers, srcu_start(srcu, u64(0))):
        return False
    return settle(memslots, desk)


@compiled
def change_at_once(memslots: Words, desk: Own, srcu: Words, readers: U64, create: bool) -> U64:
    """Carry out the change that the desk asks for, from its checks to the mirror: see ``open_change``.

    Its kind, or the reason why not; maybe with UNFINISHED. O(log n + readers), no waiting.
    """
    kind = open_change(memslots, desk, create)
    if kind >= NOTHING:
        return kind
    if not swap_at_once(memslots, desk, srcu, readers):
        return kind | UNFINISHED
    if DELETE <= kind <= MOVE:
        stage_asked(memslots, desk)
        if not swap_at_once(memslots, desk, srcu, readers):
            return kind | UNFINISHED
    bring(memslots, desk, False)
    return kind
