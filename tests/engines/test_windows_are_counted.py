"""What an access in or across a window is counted as: by cases, each with what it saw and when it began and ended."""

from __future__ import annotations

import pytest

from guestmem.atomics import peek, poke
from guestmem.compiled import own, words
from guestmem.engines import load_words
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.accesses import note
from guestmem.entries import flat

OLD, NEW, OTHER, HOLE, READONLY = 0x1000, 0x2000, 0x3000, 0, 1
BEFORE, INSIDE, AFTER = 10, 11, 12
NEVER = (1 << 64) - 1
GPA = 0x5008
LAST_OLD, FIRST_NEW = int(load_words.LAST_OLD), int(load_words.FIRST_NEW)
MUST = int(load_words.MUST)
CHANGED = MUST | int(load_words.CHANGED)

CASES = {
    # flags, old, new, saw, begun, ended: counters
    "old, inside": (CHANGED, OLD, NEW, OLD, INSIDE, INSIDE, {"inside", "inside_changed", "saw_old"}),
    "new, inside": (CHANGED, OLD, NEW, NEW, INSIDE, INSIDE, {"inside", "inside_changed", "saw_new"}),
    "new, inside to after": (CHANGED, OLD, NEW, NEW, INSIDE, AFTER, {"inside", "inside_changed", "saw_new"}),
    "old, into it": (CHANGED, OLD, NEW, OLD, BEFORE, INSIDE, {"inside", "inside_changed"}),
    "new, into it": (CHANGED, OLD, NEW, NEW, BEFORE, INSIDE, {"inside", "inside_changed", "saw_new"}),
    "new, across it": (CHANGED, OLD, NEW, NEW, BEFORE, AFTER, {"inside", "inside_changed", "saw_new"}),
    "old, inside to after": (CHANGED, OLD, NEW, OLD, INSIDE, AFTER, {"inside", "inside_changed", "saw_old"}),
    "old, after": (CHANGED, OLD, NEW, OLD, AFTER, AFTER, {"stale"}),
    "new, after": (CHANGED, OLD, NEW, NEW, AFTER, AFTER, set()),
    "neither, inside": (CHANGED, OLD, NEW, OTHER, INSIDE, INSIDE, {"inside", "inside_changed", "strange"}),
    "neither, after": (CHANGED, OLD, NEW, OTHER, AFTER, AFTER, {"strange"}),
    "kept, inside": (MUST, OLD, OLD, OLD, INSIDE, INSIDE, {"inside"}),
    "kept, after": (MUST, OLD, OLD, OLD, AFTER, AFTER, set()),
    "kept, refused": (MUST, OLD, OLD, READONLY, INSIDE, INSIDE, {"inside", "refused_writes"}),
    "hole, inside": (CHANGED, OLD, NEW, HOLE, INSIDE, INSIDE, {"inside", "inside_changed"}),
    "new memory, still away": (8, HOLE, NEW, HOLE, INSIDE, INSIDE, {"saw_old"}),
    "new memory, there": (8, HOLE, NEW, NEW, INSIDE, INSIDE, {"saw_new"}),
    "new memory, away after": (8, HOLE, NEW, HOLE, AFTER, AFTER, {"stale"}),
    "memory that goes, gone": (8, OLD, HOLE, HOLE, INSIDE, INSIDE, {"saw_new"}),
    "memory that goes, after": (8, OLD, HOLE, OLD, AFTER, AFTER, {"stale"}),
    "rights that go": (CHANGED, OLD, READONLY, READONLY, INSIDE, INSIDE, {"inside", "inside_changed", "saw_new"}),
    "rights that went": (CHANGED, OLD, READONLY, OLD, AFTER, AFTER, {"stale"}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_access(name: str) -> None:
    flags, old, new, saw, begun, ended, wanted = CASES[name]
    vm, mine = words(at.vm_words(1)), own(at.OWN_WORDS)
    mine[int(at.WINDOW_LOADED)] = BEFORE
    report = int(at.VCPUS) + int(at.REPORT)
    poke(vm, report + FIRST_NEW, NEVER)
    flat(note)(vm, mine, 0, GPA, flags, old, new, saw, begun, ended, 777)
    counts = {each for index, each in enumerate(at.COUNTER_NAMES) if int(mine[int(at.COUNTERS) + index])}
    assert counts == wanted
    assert peek(vm, report + LAST_OLD) == (777 if "saw_old" in wanted else 0)
    assert (peek(vm, report + FIRST_NEW) != NEVER) == ("saw_new" in wanted)
    assert peek(vm, report + int(load_words.LAST_OLD_GPA)) == (GPA if "saw_old" in wanted else 0)
    assert peek(vm, report + int(load_words.FIRST_NEW_GPA)) == (GPA if "saw_new" in wanted else 0)


def test_only_the_first_end_and_the_last_start_are_reported() -> None:
    vm, mine = words(at.vm_words(1)), own(at.OWN_WORDS)
    mine[int(at.WINDOW_LOADED)] = BEFORE
    report = int(at.VCPUS) + int(at.REPORT)
    poke(vm, report + FIRST_NEW, NEVER)
    ends = []
    for start in (5, 9):
        flat(note)(vm, mine, 0, GPA, CHANGED, OLD, NEW, OLD, INSIDE, INSIDE, start)
        flat(note)(vm, mine, 0, GPA, CHANGED, OLD, NEW, NEW, INSIDE, INSIDE, start)
        ends.append(peek(vm, report + FIRST_NEW))
    assert peek(vm, report + LAST_OLD) == 9
    assert ends[0] == ends[1] < NEVER
