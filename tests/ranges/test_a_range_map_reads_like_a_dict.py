"""From Python: slices in, ranges out; equality, arrays, gaps, snapshots; a clear line for what cannot be meant."""

from __future__ import annotations

import gc
import importlib
import threading
from typing import Any

import numpy as np
import pytest

from guestmem import UsageError
from guestmem.ranges import RangeMap


@pytest.fixture
def ranges() -> RangeMap:
    return RangeMap([(0, 10, 1), (20, 30, 2), (30, 40, 3)])


def test_items_and_slices(ranges: RangeMap) -> None:
    assert ranges[5] == 1
    assert ranges[25:35] == [(25, 30, 2), (30, 35, 3)]
    assert list(ranges.overlapping(9, 21)) == [(9, 10, 1), (20, 21, 2)]
    assert list(ranges.overlapping(10, 20)) == []
    assert 10 not in ranges
    assert "ten" not in ranges
    with pytest.raises(KeyError):
        ranges[10]
    del ranges[5]
    assert ranges[0:10] == [(0, 5, 1), (6, 10, 1)]
    ranges[5] = 1
    assert ranges.find(7) == (0, 10, 1)
    assert ranges.find(15) == (10, 20, 0)
    assert ranges.covered() == 30
    ranges.erase(0, 40)
    assert not list(ranges)
    assert len(ranges) == 0


def test_gaps(ranges: RangeMap) -> None:
    assert list(ranges.gaps()) == [(10, 20), (40, 1 << 64)]
    assert list(ranges.gaps(5, 35)) == [(10, 20)]
    assert list(ranges.gaps(12, 14)) == [(12, 14)]
    assert list(ranges.gaps(0, 10)) == []
    assert ranges.find_gap(10) == 10
    assert ranges.find_gap(11) == 40
    assert ranges.find_gap(6, start=15) == 40
    assert ranges.find_gap(1, end=10) is None
    assert ranges.find_gap(3, 12, 14) is None
    assert ranges.find_gap(1 << 64) is None
    assert RangeMap().find_gap(1 << 64) == 0


def test_equality_and_what_is_shown(ranges: RangeMap) -> None:
    other = RangeMap([(20, 40, 3), (20, 30, 2), (0, 10, 1)])
    assert ranges == other
    assert ranges == other.snapshot()
    other[0] = 7
    assert ranges != other
    assert ranges != [(0, 10, 1)]
    assert repr(other) == "RangeMap({[0x0, 0x1): 7, [0x1, 0xa): 1, [0x14, 0x1e): 2, [0x1e, 0x28): 3})"
    other[100:200] = 0x10
    assert repr(other).endswith(": 3, … 1 more})")


def test_arrays_in_bulk(ranges: RangeMap) -> None:
    first, last, value = ranges.to_arrays()
    assert (first.tolist(), last.tolist(), value.tolist()) == ([0, 20, 30], [9, 29, 39], [1, 2, 3])
    assert RangeMap.from_arrays(first, last, value, capacity=100) == ranges
    assert ranges.load_many([0, 15, 39, (1 << 64) - 1]).tolist() == [1, 0, 3, 0]
    assert ranges.load_many([]).tolist() == []
    ranges.store_arrays(np.arange(0, 100, 10), np.arange(9, 109, 10), np.full(10, 4))
    assert list(ranges) == [(0, 100, 4)]


def test_a_snapshot_holds_until_it_is_dropped(ranges: RangeMap) -> None:
    one = ranges.snapshot()
    ranges[0:100] = 9
    two = ranges.snapshot()
    again = one.snapshot()
    assert list(again) == list(one) == [(0, 10, 1), (20, 30, 2), (30, 40, 3)]
    again.close()
    one.close()
    one.close()
    with pytest.raises(UsageError, match=r"^snapshot: it is closed$"):
        one.get(0)
    del ranges[0:50]
    assert list(two) == [(0, 100, 9)]
    del two, again, one
    gc.collect()
    ranges[1] = 1
    ranges.check()
    assert ranges._desk[8] == 0


@pytest.mark.parametrize(
    ("search", "ask", "answer"),
    [
        ("ranges_load_many", lambda m: m.load_many([0, 25]).tolist(), [1, 2]),
        ("ranges_gap", lambda m: m.find_gap(5), 10),
        ("ranges_copy", lambda m: [len(column) for column in m.to_arrays()], [3, 3, 3]),
    ],
)
def test_a_long_search_sees_one_moment(
    ranges: RangeMap, search: str, ask: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that lets go of the GIL: another thread stores when it has the tree, and before it looks at it."""
    module: Any = importlib.import_module("guestmem.ranges.snapshot")
    real = getattr(module, search)

    def searched(*arguments: Any) -> Any:
        storing = threading.Thread(target=lambda: ranges.store(0, 100, 9))
        storing.start()
        storing.join()
        return real(*arguments)

    monkeypatch.setattr(module, search, searched)
    assert ask(ranges) == answer
    assert list(ranges.gaps(0, 100)) == []


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: m.store(5, 5, 1), "range: [0x5, 0x5) is empty or reversed"),
        (lambda m: m.store(6, 5, 1), "range: [0x6, 0x5) is empty or reversed"),
        (lambda m: m.store(-1, 5, 1), "start: -0x1 is not within 0 to 0x10000000000000000"),
        (lambda m: m.store(0, (1 << 64) + 1, 1), "end: 0x10000000000000001 is not within 0 to 0x10000000000000000"),
        (lambda m: m.store(0, 1, 1 << 64), "value: 0x10000000000000000 is not within 0 to 0xffffffffffffffff"),
        (lambda m: m.store(0, 1, -1), "value: -0x1 is not within 0 to 0xffffffffffffffff"),
        (lambda m: m.store(0, 1, "a"), "value: 'a' is not an integer"),
        (lambda m: m.store(0.5, 1, 1), "start: 0.5 is not an integer"),
        (lambda m: m[0:4:2], "step: 2 is not None: a range has every index"),
        (lambda m: m[1 << 64], "index: 0x10000000000000000 is not within 0 to 0xffffffffffffffff"),
        (lambda m: m.find_gap(0), "size: 0 is not at least 1"),
        (lambda m: m.store_arrays([5], [4], [1]), "entry 0: first 0x5 is beyond last 0x4"),
        (lambda m: m.store_arrays([5], [4, 6], [1]), "arrays: lengths 1, 2, 1 are not one"),
        (lambda m: m.store_arrays([0.5], [4], [1]), "first: not all are integers"),
        (lambda m: m.store_arrays([-5], [4], [1]), "first: -5 is not within 0 to 0xffffffffffffffff"),
        (lambda m: m.load_many([-1]), "indices: -1 is not within 0 to 0xffffffffffffffff"),
        (lambda m: m.snapshot().load_many(["a"]), "indices: not all are integers"),
        (lambda m: m.enter(0), "reader: 0: the map was made for 0 readers"),
        (lambda m: RangeMap(readers=2).exit(2), "reader: 2: the map was made for 2 readers, 0 to 1"),
    ],
)
def test_what_cannot_be_meant_is_one_line(ranges: RangeMap, call: Any, line: str) -> None:
    before = list(ranges)
    with pytest.raises(UsageError) as caught:
        call(ranges)
    assert str(caught.value) == line
    assert list(ranges) == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"capacity": 0}, "capacity: 0 ranges is not within 1 to 0x100000000"),
        ({"readers": -1}, "readers: -1 is not within 0 to 65536"),
        ({"fanout": 2}, "fanout: 2 is not within 3 to 255"),
    ],
)
def test_options(options: Any, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        RangeMap(**options)
    assert str(caught.value) == line
