"""One whole change in one call, as KVM_SET_USER_MEMORY_REGION does it, as far as no reader has to be waited for.

And a whole batch by which no vCPU loses anything (a split, a merge, a slot that grows).

Source: ``kvm_set_memslot()``, ``kvm_create_memslot()``, ``kvm_delete_memslot()``, ``kvm_move_memslot()``, Linux 6.18.
"""

from __future__ import annotations

from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from ..rcu.srcu import srcu_expired, srcu_start
from .batch import EFFECT_WORDS, Action, compare_sets
from .edit import CREATE, DELETE, MOVE, NOTHING
from .layout import PHASE
from .phases import BATCH_WORDS, IDLE, bring, open_change, publish, settle, stage_asked, stage_batch

__all__ = ["DONE", "NOT_AT_ONCE", "PUBLISHED", "UNFINISHED", "batch_at_once", "change_at_once", "swap_at_once"]

NOT_AT_ONCE, DONE, PUBLISHED = (const(state) for state in range(3))
"""What ``batch_at_once`` returns."""

UNFINISHED = const(1 << 63)
"""Bit of what ``change_at_once`` returns: a reader is inside; PHASE says how far the change got."""

_WRITES, _STALL = const(Action.WRITES.value), const(Action.STALL.value)
_EFFECT_WORDS = const(EFFECT_WORDS)


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
def _only_creates(batch: Own, count: U64) -> bool:
    """Whether no entry of a batch that was staged changed a slot that was there, but to delete it."""
    entry = u64(0)
    while entry < count:
        kind = batch[entry * BATCH_WORDS + u64(9)]
        if kind != CREATE and kind != DELETE:
            return False
        entry += ONE
    return True


@compiled
def _loses(effects: Own, count: U64) -> bool:
    """Whether by ``count`` effects a frame loses memory or rights, so that vCPUs have to be stalled."""
    effect = u64(0)
    while effect < count:
        action = effects[effect * _EFFECT_WORDS + u64(2)]
        if action == _WRITES or action == _STALL:  # noqa: SIM109 - compiled
            return True
        effect += ONE
    return False


@compiled
def batch_at_once(
    memslots: Words,
    desk: Own,
    batch: Own,
    count: U64,
    ids: U64,
    pairs: Own,
    was: Own,
    now: Own,
    out: Own,
    srcu: Words,
    readers: U64,
    losing: bool,
    creating: bool,
) -> U64:
    """Carry out a batch of one address space from its checks to the mirror, if no frame loses memory or rights by it.

    DONE; PUBLISHED if readers have to be waited for before the rest; NOT_AT_ONCE if an entry is
    refused, nothing would change, or vCPUs have to be stalled, and then nothing is changed. ``losing``: no vCPU has
    translations, so frames may lose what they have; ``creating``: only if no slot that is there is moved, or changes
    flags. ``batch`` as for ``stage_batch``, then room as for ``compare_sets``. The same functions as by the phases of
    an update, in the same order. O(k log n + readers), no waiting.
    """
    if desk[PHASE] != IDLE:
        return NOT_AT_ONCE
    staged = stage_batch(memslots, desk, batch, count, ids)
    if desk[PHASE] == IDLE:
        return NOT_AT_ONCE
    fits = staged == count and (not creating or _only_creates(batch, count))
    if not fits or (not losing and _loses(out, compare_sets(memslots, desk, pairs, was, now, out))):
        bring(memslots, desk, True)
        return NOT_AT_ONCE
    if not swap_at_once(memslots, desk, srcu, readers):
        return PUBLISHED
    bring(memslots, desk, False)
    return DONE
