"""Ranges of frames that a transaction changes, cut wherever a slot begins or ends: each piece with its slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..memslots import Slot

__all__ = ["Range", "cut"]

Range = tuple[int, int, Slot | None, Slot | None]
"""start_gfn, end_gfn, slot before, slot after."""


def cut(ranges: Iterable[tuple[int, int]], before: Sequence[Slot], after: Sequence[Slot]) -> list[Range]:
    """``ranges`` joined, then cut wherever a slot begins or ends: each piece with its slots. O(n log n)."""
    joined: list[list[int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    edges = sorted({edge for slot in (*before, *after) for edge in (slot.base_gfn, slot.end_gfn)})
    pieces: list[Range] = []
    at = 0
    olds, news = _Walk(before), _Walk(after)
    for start, end in joined:
        while at < len(edges) and edges[at] <= start:
            at += 1
        place = start
        while place < end:
            stop = min(end, edges[at]) if at < len(edges) else end
            pieces.append((place, stop, olds.at(place), news.at(place)))
            place = stop
            if at < len(edges) and edges[at] <= place:
                at += 1
    return pieces


class _Walk:
    """The slot that holds a frame, for frames asked in ascending order. O(1) amortised."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        self._slots = sorted(slots, key=lambda slot: slot.base_gfn)
        self._next = 0

    def at(self, gfn: int) -> Slot | None:
        while self._next < len(self._slots) and self._slots[self._next].end_gfn <= gfn:
            self._next += 1
        if self._next < len(self._slots) and self._slots[self._next].base_gfn <= gfn:
            return self._slots[self._next]
        return None
