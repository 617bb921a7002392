"""A batch in one compiled call, with what running vCPUs must do about it: ``designs.atomic`` from start to end.

The phases of an update (``update.py``) make room for what Python does in between: dirty logs, guest_memfds, other
maps, a second address space. A batch that needs none of it goes by this function, which calls the same compiled
functions in the same order: edit, compare, put in flux, zap and wait for vCPUs, publish, release, wait for readers,
edit the other set.
"""

from __future__ import annotations

from ...clock import now
from ...compiled import U64, Own, Words, compiled, const, u64
from ...memslots.batch import EFFECT_WORDS, Action
from ...memslots.phases import bring, publish, settle
from ...memslots.whole import effects_of, only_creates, stage_whole
from ...memslots.words import Batch, Updater
from ...patience import GAVE_UP, deadline
from ...rcu.srcu import srcu_start, srcu_wait_for
from ...stage2.words import Table
from ...stage2.zap import zap_ranges
from .flux import flux_mark, flux_release
from .layout import FLUX_MAX, FLUX_RANGE, STALLS_ALL, STALLS_WRITES

__all__ = ["DONE", "NOT_AT_ONCE", "PUBLISHED", "STATE", "TOOK_WORDS", "transact"]

NOT_AT_ONCE, DONE, PUBLISHED = (const(state) for state in range(3))
"""What becomes of a batch: nothing is changed; all is done; readers have to be waited for before the rest."""

# What a call leaves for its caller: what became of the batch, once something did; times in ns, waits that slept, ranges
# in flux, translations that went.
STATE, ACKS_NS, GRACE_NS, SLEPT, RANGES, ZAPS = (const(word) for word in range(6))
TOOK_WORDS = const(6)

_ONE, _TWO = const(1), const(2)
_MOST = const(FLUX_MAX)
_EFFECT_WORDS = const(EFFECT_WORDS)
_WRITES, _STALL = const(Action.WRITES.value), const(Action.STALL.value)


@compiled
def _stalled(effects: Own, count: U64, ranges: Own) -> U64:
    """Write to ``ranges`` what by ``count`` effects loses memory or rights; how many, FLUX_MAX + 1 for too many."""
    found = u64(0)
    effect = u64(0)
    while effect < count:
        at = effect * _EFFECT_WORDS
        action = effects[at + _TWO]
        if action == _STALL or action == _WRITES:  # noqa: SIM109 - compiled
            if found == _MOST:
                return _MOST + _ONE
            ranges[found * FLUX_RANGE] = effects[at]
            ranges[found * FLUX_RANGE + _ONE] = effects[at + _ONE]
            ranges[found * FLUX_RANGE + _TWO] = STALLS_ALL if action == _STALL else STALLS_WRITES
            found += _ONE
        effect += _ONE
    return found


@compiled(nogil=True)
def transact(
    vm: Words, updater: Updater, batch: Batch, table: Table, ranges: Own, took: Own, wait: bool, creating: bool
) -> U64:
    """Carry out a batch of one address space as one instant: DONE, PUBLISHED, or NOT_AT_ONCE with nothing changed.

    PUBLISHED: readers take long; the caller waits for them, settles and mirrors. NOT_AT_ONCE: an entry is refused,
    nothing would change, or more than FLUX_MAX ranges wait. ``table``: of the address space, with the updater's desk;
    ``ranges``: room for FLUX_MAX of FLUX_RANGE words; ``took``: TOOK_WORDS. Without ``wait`` the instant does not wait
    for vCPUs; ``creating``: only if no slot that is there is moved, or changes flags. O(k log n + readers + what is
    zapped), and the waits.
    """
    memslots, desk = updater.memslots, updater.desk
    if not stage_whole(updater, batch):
        return NOT_AT_ONCE
    stalls = _stalled(batch.out, effects_of(updater, batch), ranges)
    if stalls > _MOST or (creating and not only_creates(batch)):
        bring(memslots, desk, True)
        return NOT_AT_ONCE
    took[RANGES] = stalls
    took[ACKS_NS] = now()
    if stalls != 0:
        flux_mark(vm, ranges, stalls)
        took[ZAPS] = zap_ranges(table, ranges, stalls, wait)
    took[ACKS_NS] = now() - took[ACKS_NS]
    publish(memslots, desk)
    if stalls != 0:
        flux_release(vm)
    took[GRACE_NS] = now()
    slept = srcu_wait_for(updater.srcu, u64(0), updater.readers, srcu_start(updater.srcu, u64(0)), deadline())
    took[GRACE_NS] = now() - took[GRACE_NS]
    took[SLEPT] = slept & ~GAVE_UP
    took[STATE] = PUBLISHED
    if slept & GAVE_UP == 0:
        settle(memslots, desk)
        bring(memslots, desk, False)
        took[STATE] = DONE
    return took[STATE]
