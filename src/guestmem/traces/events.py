"""The events of one vCPU in the making: appended, forgotten far from any change, put in order at the end."""

from __future__ import annotations

import itertools
import math
import operator
import sys
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from .event_words import FORGOTTEN

__all__ = ["EDGE", "FEW", "MANY", "TAIL", "Events"]

TAIL, MANY, FEW, EDGE = 1024, 8192, 1 << 16, 64
"""Events of a vCPU that are kept before a change, after one, in any case, and at either end of a time in which no
memory was missing."""
MOST_MOVES = 1 << 24
"""Places that events which came late are moved by, one by one; if there are more, all are sorted anew."""


@dataclass(slots=True)
class Events:
    """The events of one vCPU as they came: times, and words (``event_words``).

    ``settled`` of them were there at the last change; those up to ``until`` are kept after it, and some are forgotten
    when there are more than ``full``.
    """

    times: array[float] = field(default_factory=lambda: array("d"))
    words: array[int] = field(default_factory=lambda: array("I"))
    settled: int = 0
    until: float = -math.inf
    full: int = sys.maxsize

    def add(self, time: float, event: int) -> None:
        """Append an event; stamps of one thread that step back are put in order later."""
        self.times.append(time)
        self.words.append(event)
        if len(self.times) > self.full:
            self.forget()

    def add_all(self, times: memoryview, words: memoryview) -> None:
        """Append the events of which these are the bytes, as many calls of ``add`` do."""
        count = len(words) // 4
        while len(self.times) + count > self.full:
            room = self.full + 1 - len(self.times)
            self.times.frombytes(times[: 8 * room])
            self.words.frombytes(words[: 4 * room])
            times, words, count = times[8 * room :], words[4 * room :], count - room
            self.forget()
        self.times.frombytes(times)
        self.words.frombytes(words)

    def keep(self, until: float, *, quiet: bool = False) -> None:
        """A change is here: what is known now stays, and so do the events up to ``until``, if they are not too many.

        With ``quiet`` no memory was missing since the change before: of the events since then only EDGE at either end
        are kept, so that no trace is so dense with changes that all of it stays.
        """
        if quiet and len(self.times) - self.settled > 3 * EDGE:
            self._drop(self.settled + EDGE, len(self.times) - EDGE)
        self.settled = len(self.times)
        self.until = until
        self.full = max(FEW, self.settled + MANY)

    def forget(self) -> None:
        """Drop the events since the last change, but for those soon after it and the last TAIL."""
        times = self.times
        start, end = self.settled, len(times) - TAIL
        while start < end and times[start] <= self.until and start - self.settled < MANY // 2:
            start += 1
        self.settled = start
        self._drop(start, end)
        self.full = max(FEW, len(times) + MANY)

    def _drop(self, start: int, end: int) -> None:
        """Two marks take the place of the events ``[start, end)``."""
        if end - start > 2:
            low, high = min(self.times[start:end]), max(self.times[start:end])
            self.times[start:end] = array("d", (low, high))
            self.words[start:end] = array("I", (FORGOTTEN, FORGOTTEN))

    def sort(self) -> None:
        """Put the events in order of time, those of one stamp as they came. O(n) if few are late, else O(n log n)."""
        times, words, n = self.times, self.words, len(self.times)
        if not any(map(operator.gt, times, itertools.islice(times, 1, None))):
            return
        late = [i for i, each in enumerate(map(operator.gt, times, itertools.islice(times, 1, None)), 1) if each]
        moved = done = 0
        for i in late:
            i = max(i, done)  # noqa: PLW2901 (what came before is in order by now)
            while i < n and times[i] < times[i - 1] and moved < MOST_MOVES:
                place = bisect_right(times, times[i], 0, i)
                time, event = times[i], words[i]
                times[place + 1 : i + 1], words[place + 1 : i + 1] = times[place:i], words[place:i]
                times[place], words[place] = time, event
                moved += i - place
                i += 1  # noqa: PLW2901
            done = i
        if moved >= MOST_MOVES:
            order = sorted(range(n), key=times.__getitem__)
            self.times = array("d", [times[i] for i in order])
            self.words = array("I", [words[i] for i in order])
