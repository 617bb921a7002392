"""A batch by which no vCPU loses anything, in one compiled call: a split, a merge, a slot that grows, new ids.

The phases of an update (``update.py``) make room for what vCPUs must do in between. Where nobody must do anything,
that is not needed: ``memslots.whole.batch_at_once`` calls the same compiled functions in the same order. What has
bookkeeping beside the slots (dirty logs, guest_memfds, other maps) goes by the phases.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...clock import stopwatch as _clock
from ...compiled import Own, own
from ...memslots import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, Change
from ...memslots.batch import EffectRoom
from ...memslots.layout import PHASE
from ...memslots.phases import BATCH_WORDS, SETTLED, SWAPPED, bring, settle
from ...memslots.update import end_update
from ...memslots.whole import DONE, batch_at_once
from .update import ENTRIES_MAX

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["Room", "at_once", "carry_out"]

_WORDS, _DONE, _HAPPENED = int(BATCH_WORDS), int(DONE), (int(SWAPPED), int(SETTLED))
_BESIDE = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_GUEST_MEMFD


class Room:
    """Words for a batch of up to ``entries``, used under ``slots_lock``."""

    def __init__(self, entries: int = 16) -> None:
        self.entries = entries
        self.batch: Own = own(_WORDS * entries)
        self.view = memoryview(self.batch).cast("B").cast("Q")  # type: ignore[arg-type] # words of either form
        effects = EffectRoom(entries)
        self.effects = effects.pairs, effects.was, effects.now, effects.out


def at_once(engine: SoftEngine, changes: Sequence[Change]) -> bool:
    """See ``SoftEngine.at_once``."""
    if len(changes) > ENTRIES_MAX:
        return False
    words: list[int] = []
    for change in changes:
        words += change
        words.append(0)  # for the status
    return carry_out(engine, words, losing=False, creating=False)


def carry_out(engine: SoftEngine, words: Sequence[int], *, losing: bool, creating: bool) -> bool:
    """``at_once`` of changes as words, BATCH_WORDS each. After MemoryError nothing is changed.

    ``losing``: frames may lose memory as long as there are no translations; ``creating``: as for ``batch_at_once``, and
    whoever asks knows that the changes are plain.
    """
    try:
        asked = array.array("Q", words)
    except (OverflowError, TypeError):  # whoever refuses it says which
        return False
    begun, memslots, state = _clock(), engine.memslots, 0
    with memslots.slots_lock:
        locked = _clock()
        if _is_followed(engine, asked) or not (creating or _is_plain(engine, asked)):
            return False
        count, room = len(asked) // _WORDS, engine.room
        if room.entries < count:
            room = engine.room = Room(2 * count)
        room.view[: len(asked)] = asked
        slots, desk, ids, srcu = memslots.words, memslots.desk, memslots.max_slots, memslots.srcu
        try:
            with engine.translating:  # no vCPU starts meanwhile, and whoever starts afterwards finds the new set
                may_lose = losing and not engine.has_run
                state = batch_at_once(
                    *(slots, desk, room.batch, count, ids, *room.effects, srcu.words, srcu.readers, may_lose, creating)
                )
            if state > _DONE:
                engine.counts.slept += srcu.synchronize()
                settle(slots, desk)
                bring(slots, desk, False)
            if state:
                counts = engine.counts
                counts.swaps += 1
                counts.srcu_waits += 1
                counts.lock_ns += locked - begun
                counts.edit_ns += _clock() - locked
        except BaseException as error:
            happened, patient = state or int(desk[PHASE]) in _HAPPENED, isinstance(error, Exception)
            try:
                end_update(memslots, patient=patient)
            except MemoryError:  # each phase is one call, so this goes on where that stopped
                end_update(memslots, patient=patient)
            # From the instant on there is no way back, and none is needed.
            if not (happened and isinstance(error, MemoryError)):
                raise
            return True
    if state:  # noqa: SIM103 - which allocates nothing: no error comes of what is done
        return True
    return False


def _is_followed(engine: SoftEngine, asked: array.array[int]) -> bool:
    """Under ``slots_lock``: whether anything else follows the slots that are asked for. O(k)."""
    if engine.listeners or engine.files.by_number:
        return True
    dirty = engine.dirty
    return dirty.has_any and any(dirty.bitmap(slot, asked[5]) is not None for slot in asked[::_WORDS])


def _is_plain(engine: SoftEngine, asked: array.array[int]) -> bool:
    """Whether changes are of one address space, and of slots without a log or a guest_memfd. O(k)."""
    if not asked:
        return False
    as_id, spaces = asked[5], asked[5::_WORDS]
    if as_id >= engine.memslots.address_spaces or spaces != spaces[:1] * len(spaces):
        return False
    return all(not flags & _BESIDE for flags in asked[4::_WORDS])
