"""Random operations on a range map beside a dict of every index; as a command: ``ranges_campaign.py COUNT SEED``."""

from __future__ import annotations

import random
from typing import Any

from campaign_arguments import campaign_arguments
from guestmem.ranges import RangeMap
from naive_ranges import put, ranges_of

__all__ = ["ranges_campaign"]

SPAN = 400


def ranges_campaign(count: int, rng: random.Random, kind: type[RangeMap] = RangeMap, **options: Any) -> dict[str, int]:
    """``count`` operations, each compared; returns how many there were of each kind."""
    ranges = kind(capacity=2000, **options)
    oracle: dict[int, int] = {}
    snapshots: list[tuple[Any, list[tuple[int, int, int]]]] = []
    made = dict.fromkeys(("store", "erase", "load", "find", "gap", "overlapping", "many", "snapshot", "whole"), 0)
    kinds = ("store",) * 8 + ("erase",) * 2 + ("load",) * 4 + ("find", "gap", "overlapping", "many", "snapshot")
    for number in range(count):
        what = "whole" if number % 64 == 63 else rng.choice(kinds)
        made[what] += 1
        start = rng.randrange(SPAN)
        end = min(SPAN, start + 1 + int(SPAN * rng.random() ** 5))
        _one(ranges, oracle, snapshots, what, start, end, rng)
    for snapshot, then in snapshots:
        assert list(snapshot) == then
        snapshot.close()
    ranges.check()
    return made


def _one(ranges: Any, oracle: Any, snapshots: Any, what: str, start: int, end: int, rng: random.Random) -> None:
    if what in {"store", "erase"}:
        value = rng.randrange(1, 4) if what == "store" else 0
        ranges.store(start, end, value)
        put(oracle, start, end, value)
    elif what == "load":
        assert ranges.get(start) == oracle.get(start, 0), start
    elif what == "many":
        indices = [rng.randrange(2 * SPAN) for _ in range(20)]
        assert ranges.load_many(indices).tolist() == [oracle.get(index, 0) for index in indices]
    elif what == "find":
        first, last, value = ranges.find(start)
        assert value == oracle.get(start, 0)
        assert all(oracle.get(index, 0) == value for index in range(first, min(last, SPAN)))
        assert first == 0 or oracle.get(first - 1, 0) != value
        assert last >= SPAN or oracle.get(last, 0) != value
    elif what == "gap":
        size = rng.randrange(1, 9)
        fits = (at for at in range(start, end - size + 1) if not any(at + step in oracle for step in range(size)))
        assert ranges.find_gap(size, start, end) == next(fits, None)
    elif what == "overlapping":
        held = {index: value for index, value in oracle.items() if start <= index < end}
        assert list(ranges.overlapping(start, end)) == ranges_of(held)
    elif what == "snapshot":
        if len(snapshots) < 3:
            snapshots.append((ranges.snapshot(), ranges_of(oracle)))
        else:
            snapshot, then = snapshots.pop(rng.randrange(3))
            assert list(snapshot) == then
            snapshot.close()
    else:
        ranges.check()
        expected = ranges_of(oracle)
        assert list(ranges) == expected
        assert len(ranges) == len(expected)


if __name__ == "__main__":
    given = campaign_arguments(__doc__, count=None, seed=None)
    operations, seed = given.count, given.seed
    found = dict[str, int]()
    shapes: tuple[dict[str, Any], ...] = ({}, {"readers": 1}, {"fanout": 3}, {"fanout": 7, "readers": 1})
    for shape in shapes:
        for kind_, times in ranges_campaign(operations // len(shapes), random.Random(seed), **shape).items():
            found[kind_] = found.get(kind_, 0) + times
    print(f"{sum(found.values())} operations, seed {seed}: {found}")  # noqa: T201 - a command
