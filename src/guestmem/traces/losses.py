"""Where a recorder lost events, by CPU."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .evidence import Loss

__all__ = ["Losses"]


class Losses:
    """Where events were lost, by CPU; made once, asked often."""

    __slots__ = ("_anywhere", "_by_cpu", "all")

    def __init__(self, losses: Sequence[Loss]) -> None:
        self.all = tuple(losses)
        by_cpu: dict[int | None, list[tuple[float, float]]] = {}
        for each in losses:
            by_cpu.setdefault(each.cpu, []).append((each.after, each.before))
        self._by_cpu = {cpu: _merged(spans) for cpu, spans in by_cpu.items()}
        self._anywhere = _merged([(each.after, each.before) for each in losses])

    def __bool__(self) -> bool:
        return bool(self.all)

    def first_in(self, start: float, end: float, cpu: int | None = None) -> tuple[float, float] | None:
        """The first span that meets ``(start, end)`` in which events of ``cpu`` (None: of any CPU) may be lost."""
        if cpu is None:
            return _meeting(self._anywhere, start, end)
        found = [_meeting(self._by_cpu[key], start, end) for key in (cpu, None) if key in self._by_cpu]
        return min((each for each in found if each is not None), default=None)


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _meeting(spans: list[tuple[float, float]], start: float, end: float) -> tuple[float, float] | None:
    i = bisect_right(spans, (start, math.inf)) - 1
    for each in spans[max(i, 0) : i + 2]:
        if each[0] < end and each[1] > start:
            return each
    return None
