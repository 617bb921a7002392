"""Which frames a list of changes took away and gave back, and which change did either.

One walk over the changes, with the frames that are missing at the moment in a sorted list.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .spans import merged, without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..memslots.slot import Slot
    from ..traces.timeline import RecordedChange

__all__ = ["Returned", "walk"]


@dataclass(frozen=True, slots=True)
class Returned:
    """Frames ``[start_gfn, end_gfn)`` that change ``removed`` took away and change ``restored`` gave back (indices)."""

    start_gfn: int
    end_gfn: int
    removed: int
    restored: int
    same_host_memory: bool


class _Missing:
    """The frames that are missing now: sorted and disjoint, each with the slot they were in and who took them."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[tuple[int, int, Slot, int]] = []

    def add(self, start: int, end: int, slot: Slot, removed: int) -> None:
        """Frames that are now missing. O(log n), and moving list entries."""
        i = bisect_left(self._starts, start)
        self._starts.insert(i, start)
        self._pieces.insert(i, (start, end, slot, removed))

    def take(self, start: int, end: int) -> list[tuple[int, int, Slot, int]]:
        """Those in ``[start, end)``, clipped to it; they are no longer missing. O(log n + result), as above."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._pieces[first][1] <= start:
            first += 1
        last = bisect_left(self._starts, end)
        if first >= last:
            return []
        touched = self._pieces[first:last]
        rest = []
        if touched[0][0] < start:
            rest.append((touched[0][0], start, *touched[0][2:]))
        if touched[-1][1] > end:
            rest.append((end, touched[-1][1], *touched[-1][2:]))
        self._pieces[first:last] = rest
        self._starts[first:last] = [each[0] for each in rest]
        return [(max(low, start), min(high, end), slot, removed) for low, high, slot, removed in touched]

    def spans(self) -> tuple[tuple[int, int], ...]:
        """All of them."""
        return merged((low, high) for low, high, _, _ in self._pieces)


def walk(changes: Sequence[RecordedChange]) -> tuple[list[Returned], list[tuple[int, int]]]:
    """What ``changes`` of one address space took away and gave back, by frame; and which changes undid one another.

    The latter are pairs of indices: the second took away what the first had given. Only frames count that had memory
    before the first change and have memory after the last. O(n log n).
    """
    missing = _Missing()
    found: list[Returned] = []
    chained: list[tuple[int, int]] = []
    given: dict[int, tuple[int, list[tuple[int, int]]]] = {}  # slot id -> who made it, frames of before that it has
    for i, each in enumerate(changes):
        old, new = each.removed, each.added
        if old is not None:
            maker, spans = given.pop(old.id, (None, [(old.base_gfn, old.end_gfn)]))
            if maker is not None:
                chained.append((maker, i))
            for start, end in spans:
                missing.add(start, end, old, i)
        if new is not None:
            back = missing.take(new.base_gfn, new.end_gfn)
            found.extend(
                Returned(start, end, removed, i, same_host_memory=slot.hva(start) == new.hva(start))
                for start, end, slot, removed in back
            )
            given[new.id] = i, [(start, end) for start, end, _, _ in back]
    gone = missing.spans()
    if gone:
        found = [
            Returned(start, end, each.removed, each.restored, each.same_host_memory)
            for each in found
            for start, end in without((each.start_gfn, each.end_gfn), gone)
        ]
    found.sort(key=lambda each: (each.start_gfn, each.removed))
    return found, chained
