"""Events of vCPUs that follow one another in a trace, put together so that they are kept without looking at each.

A second process makes bundles of a block's lines, since that needs nothing but the block; the first keeps a bundle as
it is, if nothing that a reader knows says that one of its events is more than itself: else it takes the lines as if
there were no bundle.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Protocol

from .event_words import ELSEWHERE, KIND, RUN_BEGIN, RUN_END

if TYPE_CHECKING:
    import re

    from .recorder import RunStateRecorder
    from .recording import Other, Rows
    from .whereabouts import Track

__all__ = ["Bundler", "Bundling", "Made", "take_bundles"]

Key = tuple[str, str]
"""What a line's event has in common with others that are kept alike, as it stands there."""
Bundle = tuple[
    int,
    float,
    float,
    float,
    int,
    tuple[int, ...],
    tuple[tuple[int, int, bool, bytes, bytes], ...],
    tuple[tuple[int, float], ...],
]
"""Lines, first and last time, latest stamp, length of each stamp, places of the keys; of each thread how many events,
whether the first is a KVM_RUN's begin, times and words; of each CPU when it was last seen."""
Made = tuple[list[Key], list[Any]]
"""All keys of a block, and its lines in order: bundles, and rows that are none of one."""


class Bundler:
    """Puts a block together: ``add`` for an event, ``other`` for a row that is none."""

    __slots__ = ("_cpus", "_keys", "_length", "_lines", "_newest", "_places", "_threads", "pieces")

    def __init__(self) -> None:
        self._keys: dict[Key, int] = {}
        self.pieces: list[Any] = []
        self._begin()

    def _begin(self) -> None:
        self._lines = self._length = 0
        self._newest = 0.0
        self._places: dict[int, None] = {}
        self._threads: dict[int, tuple[list[float], list[int]]] = {}
        self._cpus: dict[int, float] = {}

    def add(
        self, key: Key, thread: int, stamp: str, times: list[float], words: list[int], cpu: int | None = None
    ) -> None:
        """A line with one event, or two."""
        if len(stamp) != self._length:
            self._end()
            self._length = len(stamp)
        of_thread = self._threads.get(thread)
        if of_thread is None:
            self._threads[thread] = times, words
        else:
            of_thread[0].extend(times)
            of_thread[1].extend(words)
        self._places[self._keys.setdefault(key, len(self._keys))] = None
        self._lines += 1
        if times[0] > self._newest:
            self._newest = times[0]
        if cpu is not None:
            self._cpus[cpu] = times[-1]

    def last_of(self, thread: int) -> int:
        """The last event of ``thread`` in this bundle, or 0."""
        of_thread = self._threads.get(thread)
        return of_thread[1][-1] if of_thread else 0

    def other(self, row: tuple[str, ...]) -> None:
        """A row that is none of a bundle."""
        self._end()
        self.pieces.append(row)

    def _end(self) -> None:
        if not self._lines:
            return
        of_all = [time for times, _ in self._threads.values() for time in times]
        lanes = tuple(
            (
                thread,
                len(times),
                words[0] & KIND == RUN_BEGIN,
                array("d", times).tobytes(),
                array("I", words).tobytes(),
            )
            for thread, (times, words) in self._threads.items()
        )
        self.pieces.append(
            (
                self._lines,
                min(of_all),
                max(of_all),
                self._newest,
                self._length,
                tuple(self._places),
                lanes,
                tuple(self._cpus.items()),
            )
        )
        self._begin()

    def made(self) -> Made:
        """The whole block."""
        self._end()
        return list(self._keys), self.pieces


class Bundling(Protocol):
    """A reader that takes bundles."""

    pattern: re.Pattern[str]
    begins_need_ends: bool
    """Whether a begin of KVM_RUN, without an end before it, says that the thread was elsewhere just before."""

    @property
    def state(self) -> tuple[int, int] | None:
        """What says that ``has_lane`` holds, as long as it is the same, and how long stamps are; None: for nothing."""

    def has_lane(self, key: Key) -> bool:
        """Whether an event with this key says no more than itself."""

    def passed(self, newest: float) -> None:
        """Stamps up to this were in a bundle."""

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """See ``Reader``."""


def take_bundles(reader: Bundling, run: RunStateRecorder, number: int, made: Made, block: str, other: Other) -> int:
    """Take what ``Bundler`` made of ``block``, of which the first line has ``number``; how many lines it has."""
    keys, pieces = made
    known = [False] * len(keys)
    state: tuple[int, int] | None = None
    texts: list[str] = []
    at = number
    for piece in pieces:
        if len(piece) == 8 and type(piece[0]) is int:
            lines, first, last, newest, length, places, lanes, cpus = piece
            now = reader.state
            if now is not None and now[0] != (state and state[0]):
                known = list(map(reader.has_lane, keys))
            state = now
            if (
                now is not None
                and now[1] == length
                and last <= run.next_mark
                and all(map(known.__getitem__, places))
                and (tracks := _fitting(run, lanes)) is not None
            ):
                for track, (_, _, begins, times, words) in zip(tracks, lanes, strict=True):
                    if begins and reader.begins_need_ends and track.words[-1] & KIND != RUN_END:
                        track.words.append(ELSEWHERE)
                        track.times.frombytes(times[:8])
                    track.times.frombytes(times)
                    track.words.frombytes(words)
                run.passed(first, last)
                run.last_on.update(cpus)
                reader.passed(newest)
                at += lines
                continue
            texts = texts or block.split("\n")
            text = "\n".join(texts[at - number : at - number + lines]) + "\n"
            reader.rows(at, reader.pattern.findall(text), text, other)
            at += lines
            known = [there or reader.has_lane(key) for there, key in zip(known, keys, strict=True)]
        else:
            texts = texts or block.split("\n")
            reader.rows(at, [piece], texts[at - number] + "\n", other)
            at += 1
    return at - number


def _fitting(run: RunStateRecorder, lanes: tuple[Any, ...]) -> list[Track] | None:
    """Where each thread's events are kept, if they can be kept as they are."""
    found = []
    for each in lanes:
        track = run.lane(each[0])
        if track is None or not track.words or len(track.times) + each[1] >= track.full:
            return None
        found.append(track)
    return found
