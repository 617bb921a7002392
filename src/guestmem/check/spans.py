"""Sets of frames as sorted, disjoint, half-open spans ``(start, end)``: the little of it that holes need."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Span", "merged", "without"]

Span = tuple[int, int]


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The union of ``spans``, as few as possible. O(n log n).

    >>> merged([(4, 6), (0, 2), (2, 3), (5, 9)])
    ((0, 3), (4, 9))
    """
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        elif start < end:
            result.append((start, end))
    return tuple(result)


def without(span: Span, others: tuple[Span, ...]) -> tuple[Span, ...]:
    """``span`` minus all of ``others``, which are merged. O(log n + overlapping others).

    >>> without((0, 10), ((2, 3), (5, 6), (9, 12)))
    ((0, 2), (3, 5), (6, 9))
    """
    start, end = span
    result = []
    i = max(bisect_right(others, (start,)) - 1, 0)
    while i < len(others) and others[i][0] < end:
        if others[i][1] > start:
            if others[i][0] > start:
                result.append((start, others[i][0]))
            start = others[i][1]
        i += 1
    if start < end:
        result.append((start, end))
    return tuple(result)
