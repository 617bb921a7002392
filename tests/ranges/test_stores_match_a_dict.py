"""A range map holds what a dict with every index holds, whatever is stored over what, in place and beside snapshots."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem.explore import load
from guestmem.ranges import RangeMap, RangeSnapshot
from naive_ranges import put, ranges_of

SPACE = 1 << 64


def random_stores(ranges: RangeMap, rng: random.Random, stores: int, span: int) -> None:
    """Stores at random, beside a dict; snapshots come and go."""
    oracle: dict[int, int] = {}
    snapshots: list[tuple[RangeSnapshot, list[tuple[int, int, int]]]] = []
    for _ in range(stores):
        start = rng.randrange(span)
        end = start + 1 + rng.randrange(rng.choice([1, 5, span // 6, span]))
        value = rng.randrange(4)
        ranges[start:end] = value
        put(oracle, start, end, value)
        ranges.check()
        expected = ranges_of(oracle)
        assert list(ranges) == expected
        assert len(ranges) == len(expected)
        index = rng.randrange(2 * span)
        assert ranges.get(index) == oracle.get(index, 0)
        if rng.random() < 0.05:
            snapshots.append((ranges.snapshot(), expected))
        if snapshots and rng.random() < 0.05:
            snapshot, then = snapshots.pop(rng.randrange(len(snapshots)))
            assert list(snapshot) == then
            snapshot.close()
    for snapshot, then in snapshots:
        assert list(snapshot) == then


@pytest.mark.parametrize("fanout", [3, 6, 7, 30])
@pytest.mark.parametrize("readers", [0, 2])
def test_random_stores(fanout: int, readers: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    for _ in range(sized(8, 1)):
        random_stores(RangeMap(fanout=fanout, readers=readers, capacity=1000), rng, sized(250, 120), 300)


def test_many_levels(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    """Thousands of ranges in a tree of narrow nodes; then stores that swallow any number of them."""
    count = sized(4000, 300)
    ranges, oracle = RangeMap(fanout=3), dict[int, int]()
    places = [(4 * at, 1 + at % 3) for at in range(count)]
    rng.shuffle(places)
    for start, value in places:
        ranges[start : start + 4] = value
        put(oracle, start, start + 4, value)
    ranges.check()
    assert list(ranges) == ranges_of(oracle)
    for _ in range(sized(60, 20)):
        start = rng.randrange(4 * count)
        end = min(4 * count, start + 1 + int(4 * count * rng.random() ** 4))
        value = rng.randrange(4)
        ranges[start:end] = value
        put(oracle, start, end, value)
        ranges.check()
        assert list(ranges) == ranges_of(oracle)


@pytest.mark.parametrize("shared", [False, True])
def test_the_ends_of_the_space(shared: bool) -> None:
    ranges = RangeMap(fanout=3, readers=int(shared))
    for start, end, value in [
        (0, SPACE, 1),
        (0, 1, 2),
        (SPACE - 1, SPACE, 3),
        (1, SPACE - 1, 0),
        (SPACE - 2, SPACE, 3),
    ]:
        ranges[start:end] = value
        ranges.check()
    assert list(ranges) == [(0, 1, 2), (SPACE - 2, SPACE, 3)]
    assert ranges[SPACE - 1] == 3
    assert SPACE - 3 not in ranges
    assert ranges.find(5) == (1, SPACE - 2, 0)
    ranges[:] = 7
    assert list(ranges) == [(0, SPACE, 7)]
    ranges.clear()
    ranges.check()
    assert list(ranges) == []


def many_stores(kind: type[RangeMap], rng: random.Random) -> None:
    for _ in range(20):
        random_stores(kind(fanout=6, capacity=300), rng, 150, 200)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The range before has the value already, and is not looked at: equal neighbours stay two.
        ("left + width + keep - ONE) != value", "left + width + keep - ONE) != value or start > 0"),
        ("        if seen != value:\n", "        if True:\n"),  # nor the one behind
        ("enough = total >= desk[MINIMUM] or last_of_level", "enough = True"),  # nodes that are too small
        ("                desk[SKIP + level] = right\n", ""),  # a node given back twice
        ("        desk[PATH_B + level + level + ONE] += ONE\n    return", "    return"),  # the old child stays
    ],
)
def test_a_broken_store_is_caught(old: str, new: str) -> None:
    """The same random work, on the same file with one line wrong, in the interpreted form."""
    package = load([("ranges/store.py", old, new)])
    broken = package.room("ranges.range_map").RangeMap
    rng = random.Random(5)
    with pytest.raises((AssertionError, MemoryError, ValueError, IndexError, OverflowError)):
        many_stores(broken, rng)
