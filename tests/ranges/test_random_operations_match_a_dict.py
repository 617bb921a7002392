"""Whatever is done in whatever order, a range map says what a dict says; `make night` does a million operations."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem.explore import load
from guestmem.ranges import RangeMap
from ranges_campaign import ranges_campaign


@pytest.mark.parametrize("fanout", [3, 30])
@pytest.mark.parametrize("readers", [0, 1])
def test_random_operations(fanout: int, readers: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    made = ranges_campaign(sized(4_000, 600), rng, fanout=fanout, readers=readers)
    assert min(made.values()) > 5


def both(kind: type[RangeMap]) -> None:
    for fanout in (30, 3):
        ranges_campaign(1_500, random.Random(4), kind, fanout=fanout)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("ranges/lookup.py", "        return (\n            found\n", "        return (\n            found + ONE\n"),
        ("ranges/lookup.py", "    return found - ONE\n", "    return found\n"),
        ("ranges/edit.py", "    to = first + desk[NEW_COUNT]\n    if to > end", "    to = first\n    if to > end"),
        ("ranges/store.py", "    shared = desk[SHARED] != 0\n", "    shared = False\n"),
    ],
)
def test_a_broken_map_is_caught(file: str, old: str, new: str) -> None:
    """The same random work, on production's text with one line wrong, in the interpreted form."""
    broken = load([(file, old, new)]).room("ranges.range_map").RangeMap
    with pytest.raises((AssertionError, MemoryError, ValueError, IndexError, OverflowError, KeyError)):
        both(broken)
