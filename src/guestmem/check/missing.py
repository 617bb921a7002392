"""Which frames a list of changes took away and gave back, and which change did either.

One walk over the changes, with the frames that are missing at the moment in a sorted list.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..memslots.slot import Slot
    from ..traces.timeline import RecordedChange

__all__ = ["Missing", "Returned", "Walk", "walk"]


class Returned(NamedTuple):
    """Frames ``[start_gfn, end_gfn)`` that change ``removed`` took away and change ``restored`` gave back (indices)."""

    start_gfn: int
    end_gfn: int
    removed: int
    restored: int
    same_host_memory: bool


class Walk(NamedTuple):
    """What a list of changes took away and gave back.

    ``removed`` and ``added`` are the slots of each change; ``returned`` is sorted by frame. ``left`` is what is still
    missing at the end: first and last frame, the slot it was in, and the change that took it.
    """

    removed: list[Slot | None]
    added: list[Slot | None]
    returned: list[Returned]
    left: list[tuple[int, int, Slot, int]]


class Missing:
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

    def __len__(self) -> int:
        return len(self._pieces)

    def pieces(self) -> list[tuple[int, int, Slot, int]]:
        """All of them, by frame."""
        return list(self._pieces)

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


def walk(changes: Sequence[RecordedChange]) -> Walk:
    """What the changes of one transaction took away and gave back, by frame. O(n log n).

    A transaction takes away nothing that it gave; so what it takes away was there before it, and what it gives back
    is there after it.
    """
    removed = [each.removed for each in changes]
    added = [each.added for each in changes]
    missing = Missing()
    returned: list[Returned] = []
    for i, (old, new) in enumerate(zip(removed, added, strict=True)):
        if old is not None:
            missing.add(old.base_gfn, old.end_gfn, old, i)
        if new is not None:
            returned.extend(
                Returned(start, end, taker, i, slot.hva(start) == new.hva(start))
                for start, end, slot, taker in missing.take(new.base_gfn, new.end_gfn)
            )
    returned.sort()
    return Walk(removed, added, returned, missing.pieces())
