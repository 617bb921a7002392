"""A batch in one compiled call, and what of it Python does: before it, which batches it is for; after it, the counts.

The phases of an update (``update.py``) make room for what Python does in between. Where there is no bookkeeping beside
the slots (dirty logs, guest_memfds, other maps, another address space), that is not needed: ``transaction.transact``.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...clock import stopwatch as _clock
from ...compiled import Own, own
from ...entries import flat
from ...memslots import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, Change
from ...memslots.batch import EffectRoom
from ...memslots.layout import PHASE
from ...memslots.phases import BATCH_WORDS, SETTLED, SWAPPED, bring, settle
from ...memslots.update import end_update
from .layout import FLUX_MAX, FLUX_RANGE
from .transaction import DONE, STATE, TOOK_WORDS, transact
from .update import ENTRIES_MAX

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["Room", "at_once", "reshape"]

_WORDS, _DONE, _STATE, _HAPPENED = int(BATCH_WORDS), int(DONE), int(STATE), (int(SWAPPED), int(SETTLED))
_BESIDE = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_GUEST_MEMFD
_transact = flat(transact, alone=True)


class Room:
    """Words for a batch of up to ``entries``, used under ``slots_lock``."""

    def __init__(self, entries: int = 16) -> None:
        self.entries = entries
        self.batch: Own = own(_WORDS * entries)
        self.view = memoryview(self.batch).cast("B").cast("Q")  # type: ignore[arg-type] # words of either form
        effects = EffectRoom(entries)
        self.effects = effects.pairs, effects.was, effects.now, effects.out
        self.ranges: Own = own(int(FLUX_RANGE) * FLUX_MAX)
        self.took: Own = own(int(TOOK_WORDS))
        """Of the last batch; see ``transaction``."""


def at_once(engine: SoftEngine, changes: Sequence[Change], *, wait: bool) -> bool:
    """See ``SoftEngine.at_once``."""
    if len(changes) > ENTRIES_MAX:
        return False
    words: list[int] = []
    for change in changes:
        words += change
        words.append(0)  # for the status
    return _in_one_call(engine, words, wait=wait, creating=False)


def reshape(engine: SoftEngine, words: Sequence[int]) -> bool:
    """See ``SoftEngine.reshape``."""
    return _in_one_call(engine, words, wait=True, creating=True)


def _in_one_call(engine: SoftEngine, words: Sequence[int], *, wait: bool, creating: bool) -> bool:
    """Carry out changes as words, BATCH_WORDS each. After MemoryError nothing is changed.

    ``creating``: deletes and creates alone; whoever asks knows that they are plain.
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
        room.took[_STATE] = 0
        try:
            state = _transacted(engine, asked, wait, creating)
            waited = 0
            if state > _DONE:
                since = _clock()
                engine.counts.slept += memslots.srcu.synchronize()
                waited = _clock() - since
                settle(memslots.words, memslots.desk)
                bring(memslots.words, memslots.desk, False)
            if state:
                _count(engine, locked - begun, waited, _clock() - locked)
        except BaseException as error:
            happened = room.took[_STATE] or int(memslots.desk[PHASE]) in _HAPPENED
            patient = isinstance(error, Exception)
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


def _transacted(engine: SoftEngine, asked: array.array[int], wait: bool, creating: bool) -> int:
    """Under ``slots_lock``: the state of a batch after ``transact``."""
    memslots, room, table = engine.memslots, engine.room, engine.stage2.tables[asked[5]]
    return int(
        _transact(
            engine.words,
            *(memslots.words, memslots.desk, memslots.srcu.words, memslots.srcu.readers),
            *(room.batch, len(asked) // _WORDS, memslots.max_slots, *room.effects),
            *table.words,
            *(table.desks[0], room.ranges, room.took, wait, creating),
        )
    )


def _count(engine: SoftEngine, locked: int, waited: int, whole: int) -> None:
    """Of a batch that is done: ns that it waited for the lock, that Python waited for readers, that all took."""
    counts = engine.counts
    _, acks, grace, slept, ranges, zaps = engine.room.took.tolist()
    counts.swaps += 1
    counts.srcu_waits += 1
    counts.lock_ns += locked
    counts.acks_ns += acks
    counts.grace_ns += grace + waited
    counts.edit_ns += whole - acks - grace - waited
    counts.slept += slept
    if ranges:
        counts.ranges_in_flux += ranges
        counts.zaps += zaps
        counts.flushes += 1
        counts.kicks += engine.vcpus


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
