"""One whole change in one call, as KVM_SET_USER_MEMORY_REGION does it, as far as no reader has to be waited for.

And how a whole batch begins in one call: ``engines.soft.transaction`` goes on with it.

Source: ``kvm_set_memslot()``, ``kvm_create_memslot()``, ``kvm_delete_memslot()``, ``kvm_move_memslot()``, Linux 6.18.
"""

from __future__ import annotations

from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from ..rcu.srcu import srcu_expired, srcu_start
from .batch import compare_sets
from .edit import CREATE, DELETE, MOVE, NOTHING
from .layout import PHASE
from .phases import BATCH_WORDS, IDLE, bring, open_change, publish, settle, stage_asked, stage_batch
from .words import Batch, Updater

__all__ = ["UNFINISHED", "change_at_once", "effects_of", "only_creates", "stage_whole", "swap_at_once"]

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


@compiled
def only_creates(batch: Batch) -> bool:
    """Whether no entry of a batch that was staged changed a slot that was there, but to delete it. O(k)."""
    entry = u64(0)
    while entry < batch.entries:
        kind = batch.asked[entry * BATCH_WORDS + u64(9)]
        if kind != CREATE and kind != DELETE:
            return False
        entry += ONE
    return True


@compiled
def stage_whole(updater: Updater, batch: Batch) -> bool:
    """Stage a batch, unless an update is under way; False, with nothing changed: refused, or nothing to change."""
    memslots, desk = updater.memslots, updater.desk
    if desk[PHASE] != IDLE:
        return False
    staged = stage_batch(memslots, desk, batch.asked, batch.entries, batch.ids)
    if desk[PHASE] == IDLE:
        return False
    if staged != batch.entries:
        bring(memslots, desk, True)
        return False
    return True


@compiled
def effects_of(updater: Updater, batch: Batch) -> U64:
    """Write what a staged batch amounts to into its room; returns how many effects. See ``compare_sets``."""
    return compare_sets(updater.memslots, updater.desk, batch.pairs, batch.was, batch.now, batch.out)
