"""What the most common transactions took away and gave back, of many at once (NumPy): ``missing.walk`` over columns.

One delete whose frames one or two creates give back, or two deletes whose frames one create gives back, with nothing
left missing. Where nothing is known of vCPUs, a hole of such a transaction is a place, a length and a size.
``tests/check/test_plain_walks.py`` holds it against one walk after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..traces.columns import CREATE, DELETE, KIND, REFUSED

if TYPE_CHECKING:
    from ..traces.columns import Changes, Transactions

__all__ = ["PlainHoles", "plain_runs"]

Ints = npt.NDArray[np.int64]
SHORTEST = 32
"""Transactions that follow one another, from which on it is worth it."""


class PlainHoles:
    """The holes of the transactions ``[first, first + len(npages))``, one each.

    ``npages`` went away and came back in ``seconds``; ``other_flags``: some of them with other flags than before.
    """

    __slots__ = ("first", "npages", "other_flags", "seconds")

    def __init__(
        self,
        first: int,
        npages: npt.NDArray[np.int64],
        seconds: npt.NDArray[np.float64],
        other_flags: npt.NDArray[np.bool_],
    ) -> None:
        self.first, self.npages, self.seconds, self.other_flags = first, npages, seconds, other_flags

    def __len__(self) -> int:
        return len(self.npages)

    @property
    def longest(self) -> tuple[tuple[float, int], int]:
        """Seconds and pages of the one that lasted longest, the larger of two, the first of those; its place."""
        seconds = self.seconds.max()
        best = np.flatnonzero(self.seconds == seconds)
        place = int(best[np.argmax(self.npages[best])])
        return (float(seconds), int(self.npages[place])), place


def plain_runs(transactions: Transactions, first: int, last: int) -> list[PlainHoles]:
    """Of the transactions ``[first, last)``, those that are plain and follow one another, in order. O(n)."""
    starts, counts, scattered = transactions.extents
    start = np.frombuffer(starts, np.int64)[first:last]
    count = np.frombuffer(counts, np.int64)[first:last]
    slots = _Slots(transactions.changes)
    plain, other_flags = np.zeros(last - first, np.bool_), np.zeros(last - first, np.bool_)
    npages, seconds = np.zeros(last - first, np.int64), np.zeros(last - first)
    for deletes, creates in ((1, 1), (1, 2), (2, 1)):
        rows = np.flatnonzero(count == deletes + creates)
        removed = [start[rows] + i for i in range(deletes)]
        restored = [start[rows] + deletes + i for i in range(creates)]
        fits = slots.are(DELETE, removed) & slots.are(CREATE, restored)
        rows, removed, restored = rows[fits], [at[fits] for at in removed], [at[fits] for at in restored]
        makers = [slots.old[at].astype(np.int64) for at in removed]
        spans = [(slots.base[at], slots.base[at] + slots.npages[at]) for at in (*makers, *restored)]
        plain[rows] = _is_whole(spans, deletes)
        npages[rows] = sum(end - base for base, end in spans[:deletes])
        took = np.max([slots.time[at] for at in restored], 0) - np.min([slots.time[at] for at in removed], 0)
        seconds[rows] = np.where(took > 0, took, 0.0)
        plain[rows] &= ~np.isnan(took)
        for maker in makers:
            for at in restored:
                other_flags[rows] |= slots.flags[maker] != slots.flags[at]
    plain[[number - first for number in scattered if first <= number < last]] = False
    edges = np.flatnonzero(np.diff(np.concatenate(([0], plain.view(np.int8), [0]))))
    return [
        PlainHoles(first + low, npages[low:high], seconds[low:high], other_flags[low:high])
        for low, high in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        if high - low >= SHORTEST
    ]


class _Slots:
    """The columns of changes."""

    def __init__(self, changes: Changes) -> None:
        self._code, self.old = np.frombuffer(changes.code, np.uint8), np.frombuffer(changes.old, np.int32)
        self.base, self.npages = np.frombuffer(changes.base, np.int64), np.frombuffer(changes.npages, np.int64)
        self.flags, self.time = np.frombuffer(changes.flags, np.uint32), np.frombuffer(changes.time, np.float64)

    def are(self, kind: int, places: list[Ints]) -> npt.NDArray[np.bool_]:
        """Whether each change at these places was carried out and is of this kind, and of a slot that a change made."""
        found: npt.NDArray[np.bool_] = np.ones(len(places[0]), np.bool_)
        for at in places:
            found &= (self._code[at] & KIND == kind) & (self._code[at] < REFUSED)
            if kind == DELETE:
                found &= self.old[at] >= 0
        return found


def _is_whole(spans: list[tuple[Ints, Ints]], deletes: int) -> npt.NDArray[np.bool_]:
    """Whether what is created gives back each frame of what is deleted, and all of it has a part in that."""
    found: npt.NDArray[np.bool_]
    if len(spans) - deletes == 1:
        base, end = spans[-1]
        found = np.ones(len(base), np.bool_)
        for low, high in spans[:deletes]:
            found &= (base <= low) & (high <= end)
        return found
    (low, high), (base, end), (other, last) = spans
    middle = np.maximum(base, other)
    found = (np.minimum(end, last) == middle) & (low < middle) & (middle < high)
    return found & (np.minimum(base, other) <= low) & (high <= np.maximum(end, last))
