"""How long vCPUs had to wait: a histogram with eight steps an octave of nanoseconds, as one number a vCPU and step."""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import U64, compiled, const, u64

__all__ = ["HISTOGRAM_SIZE", "percentile", "stall_bucket"]

HISTOGRAM_SIZE = const(64 * 8)
"""Words of a histogram: eight steps for each octave of a 64-bit number of nanoseconds."""

_ONE = const(1)


@compiled
def stall_bucket(nanoseconds: U64) -> U64:
    """Index of the bucket: 8 x octave + the three bits after the leading one."""
    octave = u64(0)
    rest = nanoseconds
    while rest > 15:
        rest = rest >> 1
        octave += _ONE
    return octave * u64(8) + rest  # 0..15 themselves, then 16 + 8 k + step


def _lowest(bucket: int) -> int:
    """Smallest duration that falls into ``bucket``."""
    octave = max(0, bucket // 8 - 1)
    return (bucket - 8 * octave) << octave


def percentile(histogram: Sequence[int], share: float) -> float:
    """The duration in ns below which ``share`` of the counted waits lie (within 1/8); 0 if there were none. O(buckets).

    >>> histogram = [0] * 512
    >>> for ns in (100, 200, 300): histogram[int(stall_bucket(ns))] += 1
    >>> 192 <= percentile(histogram, 0.5) <= 208
    True
    """
    total = sum(histogram)
    if not total:
        return 0.0
    wanted = share * total
    seen = 0
    for bucket, count in enumerate(histogram):
        seen += count
        if count and seen >= wanted:
            return (_lowest(bucket) + _lowest(bucket + 1)) / 2
    return float(_lowest(int(HISTOGRAM_SIZE)))
