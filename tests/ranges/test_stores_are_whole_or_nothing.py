"""A store for which there are not enough nodes changes nothing; one that was preallocated cannot fail."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from guestmem import UsageError
from guestmem.compiled import INTERPRETED
from guestmem.errors import RangeNodesError
from guestmem.ranges import RangeMap
from guestmem.ranges import layout as at


def contents(ranges: RangeMap) -> tuple[Any, ...]:
    """Every word of the map, and the counts and lists of the writer."""
    words: Any = ranges.words
    return (bytes(words.cells if INTERPRETED else memoryview(words)), ranges._desk.tolist()[:16])


def fill(ranges: RangeMap) -> None:
    """Store ever more ranges; there is an end to it."""
    for place in range(100_000):
        ranges[3 * place] = 1 + place % 2


@pytest.mark.parametrize("readers", [0, 1])
def test_each_shortage_leaves_every_word_as_it_was(readers: int, rng: random.Random) -> None:
    """With room for 0, 1, 2 … nodes: refused, byte for byte as before, until it is enough.

    With readers about, a store that is refused has looked whether nodes that waited are free now: the tree that
    readers see is the same word.
    """
    items = [(4 * place, 4 * place + 2, 1 + place % 2) for place in range(200)]
    ranges = RangeMap(items, fanout=3, readers=readers, capacity=300)
    desk, refused, done = ranges._desk, 0, 0
    for room in range(120):
        free = int(desk[int(at.FREE_COUNT)]) + (int(desk[int(at.END)]) - int(desk[int(at.NEXT)])) // at.node_words(3)
        desk[int(at.RESERVED)] = max(free - room, 0)  # all but `room` nodes are set aside
        before, root, held = contents(ranges), ranges.root, list(ranges)
        start = rng.randrange(800)
        try:
            ranges.store(start, start + rng.randrange(1, 400), 5)
        except RangeNodesError:
            refused += 1
            assert ranges.root == root
            assert list(ranges) == held
            assert readers or contents(ranges) == before
        else:
            done += 1
        ranges.check()
    assert refused > 20
    assert done > 20
    assert RangeNodesError("").errno == errno.ENOMEM


def test_a_full_map_says_so_and_goes_on() -> None:
    ranges = RangeMap(capacity=10, fanout=3)
    line = r"^ENOMEM: ranges: no node is left for another store: \d+ ranges, room for 10 in any case$"
    with pytest.raises(RangeNodesError, match=line):
        fill(ranges)
    count = len(ranges)
    assert count >= 10
    ranges.check()
    ranges.clear()
    ranges[5] = 1
    ranges.check()


def test_what_is_preallocated_is_there() -> None:
    ranges = RangeMap(capacity=10, fanout=3)
    ranges.preallocate(3)
    with pytest.raises(RangeNodesError, match="are set aside"):
        fill(ranges)
    for place in range(3):
        ranges.store(3 * place, 3 * place + 2, 9, reserved=True)
        ranges.check()
    with pytest.raises(RangeNodesError):
        ranges.preallocate(1000)
    ranges.release()
    ranges[1] = 4
    with pytest.raises(UsageError, match=r"^stores: -1 is not at least 0$"):
        ranges.preallocate(-1)


def test_snapshots_that_live_hold_nodes() -> None:
    """Nobody waits for a snapshot, which may live for ever: the error says what holds the nodes."""
    ranges = RangeMap(capacity=10, fanout=3)
    ranges[0:10] = 1
    snapshot = ranges.snapshot()
    with pytest.raises(RangeNodesError, match=r"nodes wait for 1 snapshots$"):
        fill(ranges)
    assert list(snapshot) == [(0, 10, 1)]
    snapshot.close()
    ranges.clear()
    for place in range(1000):
        ranges[place % 50] = 1 + place % 2
    ranges.check()
