"""Memory that cannot be had, wherever ``atomic`` asks for it: nothing is changed, nobody waits, the next goes through.

MemoryError is thrown at every instruction of the engine's own code that may allocate, one after another, until a call
goes through without. (Real allocations that fail, by ``_testcapi.set_nomemory``, end in a fault within NumPy.) From the
instant on the call has no error: what is left is done.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from guestmem.atomics import peek
from guestmem.designs import find
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.errors import BatchError, MemslotError
from guestmem.memslots import Change, Slot
from no_memory import thrown
from slices import sliced

pytestmark = [pytest.mark.compiled_only, pytest.mark.slow]  # interpreted, each word allocates
HVA = 0x7F0000000000
EACH = sliced(4, 1)
"""Of the instructions of the long way each so many-th."""
OUTSIDE = ("atomic.py", "engine.py")
"""Where the error is a plain MemoryError: before the update has begun, and where the other error is made."""


def state(engine: SoftEngine) -> tuple[list[Slot], list[int], dict[Any, int]]:
    """Slots, generations, and which logs there are."""
    logs = {slot.key: id(engine.dirty.bitmap(slot.id, slot.as_id)) for slot in engine.memslots}
    return list(engine.memslots), [engine.memslots.generation(as_id) for as_id in range(2)], logs


FORTH = [Change(0), Change(0, 0, 8, HVA, 1), Change(1, 8, 8, HVA + (1 << 20), 1)]
BACK = [Change(0), Change(1), Change(0, 0, 16, HVA, 1)]
SMM = [Change(0, as_id=1), Change(2, 64, 8, HVA, 0, 1)]
SMM_BACK = [Change(2, as_id=1), Change(0, 0, 16, HVA, 1, 1)]
CALLS = {"one space": (FORTH, BACK), "both": (FORTH + SMM, BACK + SMM_BACK)}


@pytest.mark.parametrize("which", CALLS)
@pytest.mark.parametrize("is_refused", [False, True], ids=["", "of a batch that is refused"])
def test_at_each_place(which: str, is_refused: bool) -> None:
    forth, back = CALLS[which]
    if is_refused:
        forth = [*forth, Change(77)]
    with SoftEngine(1, address_spaces=2) as engine:
        for as_id in range(2):
            engine.set_memory_region(Change(0, 0, 16, HVA, 1, as_id))
        apply = find("atomic").prepare(engine)
        if not is_refused:
            apply(engine, forth)  # room that is kept is there from now on
            apply(engine, back)
        number = failed = went_through = named = 0
        while True:
            before = state(engine)
            error, where = thrown(lambda: apply(engine, forth), number)
            assert not peek(engine.words, int(at.FLUX)) & 255, f"{where}: still in flux"
            assert engine.memslots.slots_lock.acquire(blocking=False), f"{where}: the lock is held"
            engine.memslots.slots_lock.release()
            after = state(engine)
            if error is None:
                assert after[0] != before[0], f"{where}: no error, and nothing is changed"
                assert not any(generation >> 63 for generation in after[1]), f"{where}: left unfinished"
                assert all(logs != before[2].get(key) for key, logs in after[2].items() if key.as_id == 0)
                went_through += 1
                apply(engine, back)
            else:
                number_of = error.errno if isinstance(error, MemslotError) else 0
                told = number_of == errno.ENOMEM or (is_refused and number_of == errno.EINVAL)
                assert told or where.startswith(OUTSIDE), f"{where}: {error!r}"
                named += isinstance(error, BatchError) and number_of == errno.ENOMEM
                assert after == before, f"{where}: {error!r}, and something is changed"
                failed += 1
            if not where:
                break  # there was no such instruction
            number += EACH
        assert number > 300
        assert failed > 200 // EACH
        assert went_through > 50 // EACH or is_refused  # behind the instant
        assert named > 20 // EACH or is_refused, "errors that name an entry"
        engine.memslots.check()


SPLIT = [Change(0), Change(0, 0, 8, HVA), Change(1, 8, 8, HVA + (8 << 12))]
MERGE = [Change(0), Change(1), Change(0, 0, 16, HVA)]


def test_at_each_place_of_the_short_way() -> None:
    """As above, of a batch that is one compiled call; where it had no memory, the phases are left to find some."""
    with SoftEngine(1, address_spaces=2) as engine:
        engine.set_memory_region(Change(0, 0, 16, HVA))
        assert engine.at_once(SPLIT)  # what is compiled on the first call is from now on
        assert engine.at_once(MERGE)
        number = failed = went_through = 0
        while True:
            before = state(engine)
            done: list[bool] = []
            error, where = thrown(lambda: done.append(engine.at_once(SPLIT)), number)  # noqa: B023
            assert engine.memslots.slots_lock.acquire(blocking=False), f"{where}: the lock is held"
            engine.memslots.slots_lock.release()
            after = state(engine)
            assert not any(generation >> 63 for generation in after[1]), f"{where}: left unfinished"
            if done == [True]:
                assert after[0] != before[0], f"{where}: it is done, and nothing is changed"
                went_through += 1
                assert engine.at_once(MERGE)
            else:
                assert after == before, f"{where}: {error!r}, {done}, and something is changed"
                assert done == [False] or where.startswith(("test_", "engine.py")), f"{where}: {error!r}"
                failed += 1
            if not where:
                break
            number += 1
        assert failed > 50
        assert went_through > 5
        engine.memslots.check()
