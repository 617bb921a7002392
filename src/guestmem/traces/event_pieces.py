"""Events of vCPUs, one or two on a line, and the plain changes among them, taken many lines at once.

As ``pieces``, for recordings in which entry and exit, or begin and end of KVM_RUN, have lines of their own. A second
process can make the pieces of a block; the reader keeps a piece as it is, if nothing that it knows says that one of the
lines is more than itself: else it takes the lines as if there were no piece.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .event_words import ELSEWHERE, KIND, RUN_BEGIN, RUN_END
from .pieces import NEAR

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence

    from .columns import Plain
    from .recorder import RunStateRecorder
    from .recording import Other, Rows
    from .whereabouts import Track

__all__ = ["EventChanges", "EventPiece", "EventPieces", "EventPiecewise", "Lane", "PieceMaker", "take_event_pieces"]

EventKey = tuple[str, str]
"""What a line's event has in common with others that are kept alike, as it stands there."""
EventPieces = tuple[list[EventKey], list[Any]]
"""All keys of a block, and the block in order: a piece's fields, or the number of lines that are in none."""
SHORTEST = 8
"""Lines of a piece at least: fewer are not worth it."""
DOUBLE, WORD = 8, 4


class EventChanges(NamedTuple):
    """The changes of a piece, all of them plain.

    On which of its lines they are, the columns of ``Plain`` as bytes, the first and the last of those that are NEAR one
    another, and the threads of which there is an event in user space on the line of a change.
    """

    rows: tuple[int, ...]
    columns: tuple[bytes, ...]
    groups: tuple[tuple[int, int], ...]
    outside: tuple[int, ...]


class EventPiece(NamedTuple):
    """Lines of events and changes.

    ``first`` and ``last`` time, how many characters each stamp has; of each line its time (of a change: minus
    infinity); of each thread whether the first event is a KVM_RUN's begin, and on which line each event is, with time
    and word; of each CPU when it was last seen.
    """

    lines: int
    first: float
    last: float
    length: int
    times: bytes
    lanes: tuple[tuple[int, bool, bytes, bytes, bytes], ...]
    cpus: tuple[tuple[int, float], ...]
    changes: tuple[Any, ...] | None


class Lane:
    """The events of one thread in the piece that is made: lines, times and words."""

    __slots__ = ("rows", "times", "words")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.times: list[float] = []
        self.words: list[int] = []


class PieceMaker:
    """Makes the pieces of a block, whose lines the reader hands over in order.

    For an event it appends to ``times`` and to the ``lane`` of its thread, which is always the same, with
    ``len(times)`` before that as the row; for any other line it calls ``change`` or ``other``. ``plain_of`` makes
    columns of changes, or says None.
    """

    __slots__ = ("_changes", "_lanes", "_odd", "_outside", "_plain_of", "_rows", "cpus", "found", "length", "times")

    def __init__(self, plain_of: Callable[[list[tuple[str, ...]]], Plain | None]) -> None:
        self._plain_of = plain_of
        self._lanes: dict[int, Lane] = {}
        self.cpus: dict[int, float] = {}
        """When each was last seen in this piece."""
        self.times: list[float] = []
        self.length = 0
        """How many characters a stamp of this piece has."""
        self._changes: list[tuple[str, ...]] = []
        self._rows: list[int] = []
        self._outside: dict[int, None] = {}
        self._odd = 0
        """Lines since the last piece that are in none."""
        self.found: list[Any] = []

    def lane(self, thread: int) -> Lane:
        """Where events of ``thread`` go."""
        return self._lanes.setdefault(thread, Lane())

    def change(self, fields: tuple[str, ...], outside: Lane | None = None, thread: int = 0, time: float = 0.0) -> None:
        """A line with a change; if ``thread`` runs a vCPU, its lane: it was in user space at ``time``."""
        row = len(self.times)
        self.times.append(-math.inf)
        self._rows.append(row)
        self._changes.append(fields)
        if outside is not None:
            outside.rows.append(row)
            outside.times.append(time)
            outside.words.append(ELSEWHERE)
            self._outside[thread] = None

    def other(self) -> None:
        """A line that is in no piece."""
        self.end()
        self._odd += 1

    def end(self) -> None:
        """The piece ends here."""
        lines = len(self.times)
        if lines:
            piece = self._piece() if lines >= SHORTEST else None
            if piece is None:
                self._odd += lines
            else:
                if self._odd:
                    self.found.append(self._odd)
                self.found.append(tuple(piece))
                self._odd = 0
            for lane in self._lanes.values():
                lane.rows.clear()
                lane.times.clear()
                lane.words.clear()
            for each in (self.times, self.cpus, self._rows, self._changes, self._outside):
                each.clear()

    def _piece(self) -> EventPiece | None:
        """What there is, as a piece; None if a change is not plain."""
        changes: EventChanges | None = None
        if self._changes:
            plain = self._plain_of(list(zip(*self._changes, strict=True)))
            if plain is None:
                return None
            rows = self._rows
            firsts = [i for i, row in enumerate(rows) if not i or row - rows[i - 1] > NEAR]
            lasts = [*(i - 1 for i in firsts[1:]), len(rows) - 1]
            changes = EventChanges(
                tuple(rows),
                tuple([column.tobytes() for column in plain]),
                tuple(zip(firsts, lasts, strict=True)),
                tuple(self._outside),
            )
        lanes = tuple(
            [
                (
                    thread,
                    lane.words[0] & KIND == RUN_BEGIN,
                    array("I", lane.rows).tobytes(),
                    array("d", lane.times).tobytes(),
                    array("I", lane.words).tobytes(),
                )
                for thread, lane in self._lanes.items()
                if lane.words
            ]
        )
        times = array("d", self.times)
        of_lanes = [time for _, _, _, each, _ in lanes for time in (min(array("d", each)), max(array("d", each)))]
        return EventPiece(
            *(len(times), min(of_lanes, default=math.inf), max(of_lanes, default=-math.inf), self.length),
            *(times.tobytes(), lanes, tuple(self.cpus.items()), changes and tuple(changes)),
        )

    def made(self, keys: list[EventKey]) -> EventPieces:
        """The whole block."""
        self.end()
        if self._odd:
            self.found.append(self._odd)
        return keys, self.found


class EventPiecewise(Protocol):
    """A reader that takes such pieces."""

    pattern: re.Pattern[str]
    begins_need_ends: bool
    """Whether a begin of KVM_RUN, without an end before it, says that the thread was elsewhere just before."""

    @property
    def state(self) -> tuple[int, int]:
        """What says that ``has_lane`` holds, as long as it is the same; how many characters stamps have (0: any)."""

    def has_lane(self, key: EventKey) -> bool:
        """Whether an event with this key says no more than itself."""

    def may_take(self, changes: EventChanges) -> bool:
        """Whether the changes of a piece say no more than themselves; they may still not be plain."""

    def carry_out(self, number: int, changes: EventChanges) -> int:
        """Carry out the changes of a piece, of which the first line has ``number``; how many were carried out."""

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """See ``Reader``."""


def take_event_pieces(
    reader: EventPiecewise, run: RunStateRecorder, number: int, made: EventPieces, block: str, other: Other
) -> int:
    """Take what was ``made`` of ``block``, of which the first line has ``number``; how many lines it has."""
    keys, pieces = made
    state, known = -1, False
    texts: list[str] = []
    at = number
    for piece in pieces:
        lines, done = piece, 0
        if type(piece) is not int:
            version, length = reader.state
            if version != state or not known:
                state, known = version, all(map(reader.has_lane, keys))
            lines = piece[0]
            if known and length in (0, piece[3]):
                done = _take(reader, run, at, EventPiece._make(piece))
        if done < lines:
            texts = texts or block.split("\n")
            text = "\n".join(texts[at - number + done : at - number + lines]) + "\n"
            reader.rows(at + done, reader.pattern.findall(text), text, other)
        at += lines
    return at - number


def _take(reader: EventPiecewise, run: RunStateRecorder, number: int, piece: EventPiece) -> int:
    """Take a piece, as far as it can be kept as it is; how many of its lines."""
    lanes: list[_Lane] = []
    roomy = True
    for each in piece.lanes:
        track = run.lane(each[0])
        if track is None or not track.words:
            return 0
        roomy = roomy and len(track.times) + len(each[4]) // WORD < track.full
        lanes.append(_Lane(track, each, after_end=not reader.begins_need_ends))
    changes = None if piece.changes is None else EventChanges._make(piece.changes)
    passes = piece.last > run.next_mark
    if (passes and (not roomy or changes is not None)) or (changes is not None and not reader.may_take(changes)):
        return 0
    end = piece.lines
    if changes is not None:
        done = reader.carry_out(number, changes)
        if done < len(changes.rows):
            end = changes.rows[done]
        _settle(run, lanes, changes, done, roomy=roomy)
    elif passes:
        mark = run.last_mark_before(piece.last)
        times = memoryview(piece.times).cast("d")
        line = next(itertools.compress(range(end), map(mark.__lt__, times)))
        for lane in lanes:
            lane.go_to(line)
        run.pass_marks(times[line])
    for lane in lanes:
        lane.go_to(end)
    if lanes:
        run.passed(piece.first, piece.last)
        run.last_on.update(piece.cpus)
    return end


class _Lane:
    """Where the events of one thread are kept, and how many of the piece's are there."""

    __slots__ = ("_done", "_rows", "_times", "_track", "_words")

    def __init__(self, track: Track, lane: tuple[int, bool, bytes, bytes, bytes], *, after_end: bool) -> None:
        _, begins, rows, times, words = lane
        if begins and not after_end and track.words[-1] & KIND != RUN_END:
            rows, times, words = rows[:WORD] + rows, times[:DOUBLE] + times, ELSEWHERE_BYTES + words
        self._track, self._done = track, 0
        self._rows, self._times, self._words = memoryview(rows).cast("I"), memoryview(times), memoryview(words)

    def go_to(self, line: int) -> None:
        """Keep the events of the lines before ``line``."""
        done, count = self._done, bisect_left(self._rows, line)
        if count > done:
            times, words = self._times[DOUBLE * done : DOUBLE * count], self._words[WORD * done : WORD * count]
            self._track.add_all(times, words)
            self._done = count


ELSEWHERE_BYTES = array("I", [ELSEWHERE]).tobytes()


def _settle(run: RunStateRecorder, lanes: Sequence[_Lane], changes: EventChanges, done: int, *, roomy: bool) -> None:
    """Keep the events up to each of the first ``done`` changes, and tell that one is there.

    Of those that are NEAR the one before, only the last has to be told of, since nothing is forgotten in between.
    """
    sizes, times = array("Q", changes.columns[2]), array("d", changes.columns[6])
    for first, last in changes.groups:
        stop = min(last + 1, done)
        for i in range(first, stop):
            if i == first or i == stop - 1 or not roomy:
                for lane in lanes:
                    lane.go_to(changes.rows[i])
                gives = sizes[i] > 0
                run.change_at(times[i], (not gives) if i == first or not roomy else (False if gives else None))
