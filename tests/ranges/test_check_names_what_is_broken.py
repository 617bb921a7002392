"""``check()`` of a range map names the first invariant that does not hold; each is broken once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem import InvariantError
from guestmem.atomics import peek, poke
from guestmem.ranges import RangeMap

SIZE = 16  # words of a node of fan-out 3


def root(ranges: RangeMap) -> int:
    return int(peek(ranges.words, 0)) >> 6


def leaf(ranges: RangeMap) -> int:
    node, height = root(ranges), int(peek(ranges.words, 0)) & 63
    for _ in range(height):
        node = int(peek(ranges.words, node + SIZE // 2))
    return node


def set_word(ranges: RangeMap, at: int, value: int) -> None:
    poke(ranges.words, at, value)


def set_desk(ranges: RangeMap, at: int, by: int) -> None:
    ranges._desk[at] = int(ranges._desk[at]) + by


BREAKS: dict[str, tuple[Callable[[RangeMap], None], str]] = {
    "count of a node": (lambda m: set_word(m, leaf(m) + SIZE - 2, 0), "has 0 entries, not 1 to 3"),
    "key above": (lambda m: set_word(m, leaf(m), 1), "the level above says 0x0"),
    "order": (lambda m: set_word(m, leaf(m) + 1, 0), "follows"),
    "equal neighbours": (lambda m: set_word(m, leaf(m) + 9, peek(m.words, leaf(m) + 8)), "stands on both sides of"),
    "keys past the last": (lambda m: set_word(m, root(m) + SIZE // 2 - 1, 5), "has a key past its"),
    "number of ranges": (lambda m: set_desk(m, 0, 1), "were counted"),
    "number of nodes": (lambda m: set_desk(m, 5, 1), "nodes are in the tree"),
    "free list": (lambda m: set_desk(m, 2, 1), "nodes are free"),
    "free and in use": (lambda m: m._desk.__setitem__(1, root(m)), "is also elsewhere"),
    "waiting": (lambda m: set_desk(m, 8, 1), "nodes wait for readers"),
    "taken": (lambda m: set_desk(m, 3, SIZE), "nodes were taken"),
    "twice in the tree": (lambda m: set_word(m, root(m) + 9, peek(m.words, root(m) + 8)), "is in the tree twice"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_invariant_broken_once(name: str) -> None:
    ranges = RangeMap([(4 * at, 4 * at + 2, 1 + at % 2) for at in range(20)], fanout=3, capacity=100)
    ranges.check()
    breaking, message = BREAKS[name]
    breaking(ranges)
    with pytest.raises(InvariantError, match=message):
        ranges.check()
