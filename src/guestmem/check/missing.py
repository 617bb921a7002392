"""Which frames a transaction took away and gave back, and which change did either.

One walk over its changes, with the frames that are missing at the moment in a sorted list. Changes are named by their
place among all of the trace.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from ..traces.columns import CREATE, DELETE, KIND, MOVE, NO_SLOT
from ..units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..traces.columns import Changes

__all__ = ["Missing", "Piece", "Returned", "Walk", "walk"]

Piece = tuple[int, int, int, int]
"""Missing frames: first, end, by how much host addresses are above guest addresses, and the change that took them."""
Returned = tuple[int, int, int, int, bool]
"""Frames ``[start, end)`` that one change took away and another gave back, and whether as the same host memory."""


class Walk(NamedTuple):
    """What a transaction took away and gave back, sorted by frame, and what is still missing at its end."""

    returned: list[Returned]
    left: Sequence[Piece]


class Missing:
    """The frames that are missing now: sorted and disjoint."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Piece] = []

    def add(self, piece: Piece) -> None:
        """Frames that are now missing. O(log n), and moving list entries."""
        i = bisect_left(self._starts, piece[0])
        self._starts.insert(i, piece[0])
        self._pieces.insert(i, piece)

    def __len__(self) -> int:
        return len(self._pieces)

    def pieces(self) -> list[Piece]:
        """All of them, by frame."""
        return list(self._pieces)

    def take(self, start: int, end: int) -> list[Piece]:
        """Those in ``[start, end)``, clipped to it; they are no longer missing. O(log n + result), as above."""
        pieces = self._pieces
        if not pieces or pieces[0][0] >= end or pieces[-1][1] <= start:
            return []
        first = bisect_right(self._starts, start) - 1
        if first < 0 or pieces[first][1] <= start:
            first += 1
        last = bisect_left(self._starts, end)
        if first >= last:
            return []
        touched = pieces[first:last]
        rest = []
        low, high = touched[0], touched[-1]
        if low[0] < start:
            rest.append((low[0], start, low[2], low[3]))
            touched[0] = (start, low[1], low[2], low[3])
        if high[1] > end:
            rest.append((end, high[1], high[2], high[3]))
            touched[-1] = (touched[-1][0], end, high[2], high[3])
        pieces[first:last] = rest
        self._starts[first:last] = [each[0] for each in rest]
        return touched


def walk(changes: Changes, indices: Iterable[int]) -> Walk | None:
    """What the changes of one transaction took away and gave back; None if they took nothing away. O(n log n).

    A transaction takes away nothing that it gave; so what it takes away was there before it, and what it gives back
    is there after it.
    """
    codes, olds, bases, npages, hvas = changes.code, changes.old, changes.base, changes.npages, changes.hva
    only: Piece | None = None  # what is missing, while it is one piece
    missing: Missing | None = None
    took = False
    returned: list[Returned] = []
    for i in indices:
        kind = codes[i] & KIND
        if kind in (DELETE, MOVE):
            maker = olds[i]
            if maker == NO_SLOT:
                continue
            if maker > NO_SLOT:
                base, count, hva = bases[maker], npages[maker], hvas[maker]
            else:
                old = changes.made_by(maker)
                base, count, hva = old.base_gfn, old.npages, old.userspace_addr
            piece = (base, base + count, hva - (base << PAGE_SHIFT), i)
            took = True
            if only is None and not missing:
                only = piece
            else:
                missing = _several(missing, only)
                missing.add(piece)
                only = None
        if kind not in (CREATE, MOVE):
            continue
        if only is not None:
            start = bases[i]
            end = start + npages[i]
            low, high, was, taker = only
            if start < high and low < end:
                host = hvas[i] - (start << PAGE_SHIFT)
                if start <= low:
                    only = None if end >= high else (end, high, was, taker)
                elif end >= high:
                    only = (low, start, was, taker)
                else:
                    missing = _several(missing, (low, start, was, taker))
                    missing.add((end, high, was, taker))
                    only = None
                returned.append((max(start, low), min(end, high), taker, i, was == host))
        elif missing:
            start = bases[i]
            host = hvas[i] - (start << PAGE_SHIFT)
            for low, high, was, taker in missing.take(start, start + npages[i]):
                returned.append((low, high, taker, i, was == host))
    if not took:
        return None
    if len(returned) > 1:
        returned.sort()
    if only is not None:
        return Walk(returned, (only,))
    return Walk(returned, missing.pieces() if missing else ())


def _several(missing: Missing | None, piece: Piece | None) -> Missing:
    """``missing``, or a new one, with ``piece`` in it."""
    if missing is None:
        missing = Missing()
    if piece is not None:
        missing.add(piece)
    return missing
