"""Percentiles from the histogram of stalls lie within an eighth of the true ones; worst and total are exact."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem.compiled import own
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.stalls import record_stall
from guestmem.engines.stalls import HISTOGRAM_SIZE, percentile, stall_bucket


def naive(durations: list[int], share: float) -> int:
    """The smallest duration that at least this share does not exceed."""
    ordered = sorted(durations)
    return next(each for count, each in enumerate(ordered, 1) if count >= share * len(ordered))


@pytest.mark.parametrize("largest", [8, 100, 10**4, 10**6, 10**9, 10**12])
def test_percentiles_of_random_stalls(largest: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    mine = own(at.OWN_WORDS)
    durations = [int(largest ** rng.random()) for _ in range(sized(2_000, 500))]
    for duration in durations:
        record_stall(mine, duration)
    histogram = [int(mine[int(at.HISTOGRAM) + bucket]) for bucket in range(int(HISTOGRAM_SIZE))]
    assert sum(histogram) == len(durations)
    assert int(mine[int(at.STALL_WORST)]) == max(durations)
    assert int(mine[int(at.STALL_TOTAL)]) == sum(durations)
    for share in (0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
        true = naive(durations, share)
        assert abs(percentile(histogram, share) - true) <= max(1, true / 8), share


def test_buckets_ascend_without_a_gap_and_end_in_the_histogram() -> None:
    edges = sorted({near for power in range(64) for near in (2**power - 1, 2**power, 2**power + 2**power // 8)})
    buckets = [int(stall_bucket(edge)) for edge in edges if edge < 1 << 64]
    assert buckets == sorted(buckets)
    assert [int(stall_bucket(each)) for each in range(17)] == list(range(17))
    assert int(stall_bucket(2**64 - 1)) < int(HISTOGRAM_SIZE)
    assert int(at.HISTOGRAM) + int(HISTOGRAM_SIZE) <= at.OWN_WORDS


def test_no_stall_is_zero() -> None:
    assert percentile([0] * int(HISTOGRAM_SIZE), 0.5) == 0
