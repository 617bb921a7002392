"""KVM_RUNs that stand whole on one line, begin and duration, and the changes among them, taken many lines at once.

strace with ``-T`` and perf trace print them. A *piece* is a part of a block that has nothing else in it, as columns;
that takes no more than the block to make, so a second process can do it. The reader keeps a piece as it is, if nothing
that it knows says that one of the lines is more than itself: else it takes the lines as if there were no piece.
"""

from __future__ import annotations

import itertools
import operator
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .events import EDGE
from .recorder import BEGIN_WORD, ELSEWHERE_WORD

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Sequence

    from .recorder import RunStateRecorder
    from .recording import Other, Rows
    from .whereabouts import Track

__all__ = ["Piece", "PieceChanges", "Pieces", "Piecewise", "piece_of", "stretches_of", "take_pieces"]

Pieces = list[Any]
"""A block in order: a piece's fields, or the number of lines that are in none."""
SHORTEST = 24
"""Lines of a piece at least: fewer are not worth it."""
MOST_THREADS = 127
CHANGE = 128
"""Added to the place of a thread in ``Piece.which``, on the line of a change."""
NEAR = 3 * EDGE // 2
"""A change is near the one before within so many lines: each vCPU has no more events in between than ``Events.keep``
lets stay."""
DOUBLE, WORD = 8, 4


class PieceChanges(NamedTuple):
    """The changes of a piece, all of them plain (see ``columns.Plain``).

    On which of its lines they are, the file descriptors, the columns of ``Plain`` and ``ended`` as bytes; ``groups``
    have the first and the last of those that are NEAR one another.
    """

    rows: tuple[int, ...]
    fds: tuple[int, ...]
    columns: tuple[bytes, ...]
    ended: bytes
    groups: tuple[tuple[int, int], ...]


class Piece(NamedTuple):
    """Lines of whole KVM_RUNs and changes.

    ``first`` and ``last`` time, the ``newest`` stamp, how many characters each stamp has; ``which`` of ``threads`` each
    line is of; the ``keys`` that say by what each thread runs its vCPU; in ``lanes`` the events of each thread, times
    and words; of each line ``begins`` and ``ends``.
    """

    lines: int
    first: float
    last: float
    newest: float
    length: int
    which: bytes
    threads: tuple[int, ...]
    keys: tuple[tuple[str, str], ...]
    lanes: tuple[tuple[bytes, bytes], ...]
    begins: bytes
    ends: bytes
    changes: tuple[Any, ...] | None

    @property
    def changers(self) -> list[int]:
        """The threads that made changes."""
        return [thread for place, thread in enumerate(self.threads) if CHANGE + place in self.which]


def stretches_of(found: Sequence[object]) -> Iterator[tuple[int, int, bool]]:
    """Begin and end of the stretches in which all are found, if they are not short, and of those in between, in order.

    >>> list(stretches_of([1] * 30 + [0, 1, 0]))
    [(0, 30, True), (30, 33, False)]
    """
    begin = done = 0
    for at in [*itertools.compress(range(len(found)), map(operator.not_, found)), len(found)]:
        if at - done >= SHORTEST:
            if begin < done:
                yield begin, done, False
            yield done, at, True
            begin = at
        done = at + 1
    if begin < len(found):
        yield begin, len(found), False


def piece_of(
    threads: Sequence[str],
    begins: list[float],
    ends: list[float],
    words: Sequence[int],
    keys: set[tuple[str, str]],
    length: int,
    changes: PieceChanges | None = None,
) -> tuple[Any, ...] | None:
    """A piece of lines: thread, begin, end, and what word ends it (ELSEWHERE_WORD: a change).

    None of too many threads, or of one that is written in two ways.

    O(n log n).
    """
    places = {thread: i for i, thread in enumerate(dict.fromkeys(threads))}
    numbers = tuple(map(int, places))
    if len(places) > MOST_THREADS or len(set(numbers)) != len(places):
        return None
    which = bytes(map(places.__getitem__, threads))
    newest, last = max(begins), max(ends)
    if changes is not None:
        changed = bytearray(which)
        for row in changes.rows:
            changed[row] += CHANGE
        which = bytes(changed)
        runs = list(map(CHANGE.__gt__, which))
        last = max(itertools.compress(ends, runs), default=newest)
        last = max(last, newest)
    count = len(which) - (0 if changes is None else len(changes.rows))
    order = sorted(range(len(which)), key=which.__getitem__)  # of each thread, and the changes behind
    of_runs = order[:count]
    times, both = array("d", bytes(2 * DOUBLE * count)), array("I", [BEGIN_WORD]) * (2 * count)
    times[::2] = array("d", list(map(begins.__getitem__, of_runs)))
    times[1::2] = array("d", list(map(ends.__getitem__, of_runs)))
    both[1::2] = array("I", list(map(words.__getitem__, of_runs)))
    lanes = []
    done = 0
    for place in range(len(places)):
        there = done + 2 * which.count(place)
        if CHANGE + place in which:
            lanes.append(_lane_with_changes(place, which, begins, ends, words))
        else:
            lanes.append((times[done:there].tobytes(), both[done:there].tobytes()))
        done = there
    return tuple(
        Piece(
            *(len(which), min(begins), last, newest, length, which, numbers, tuple(keys)),
            *(tuple(lanes), array("d", begins).tobytes(), array("d", ends).tobytes(), changes and tuple(changes)),
        )
    )


def _lane_with_changes(
    place: int, which: bytes, begins: Sequence[float], ends: Sequence[float], words: Sequence[int]
) -> tuple[bytes, bytes]:
    """The events of a thread that made changes: one where each began, when it was in user space."""
    times, found = array("d"), array("I")
    for i, each in enumerate(which):
        if each == place:
            times.extend((begins[i], ends[i]))
            found.extend((BEGIN_WORD, words[i]))
        elif each == CHANGE + place:
            times.append(begins[i])
            found.append(ELSEWHERE_WORD)
    return times.tobytes(), found.tobytes()


class Piecewise(Protocol):
    """A reader that takes pieces."""

    pattern: re.Pattern[str]

    def fits(self, piece: Piece) -> bool:
        """Whether each line of the piece says no more than itself."""

    def is_outside(self, thread: int) -> bool:
        """Whether ``thread`` runs a vCPU, and was in user space where it made a change."""

    def carry_out(self, number: int, piece: Piece, changes: PieceChanges) -> int:
        """Carry out the changes of a piece, of which the first line has ``number``; how many were carried out."""

    def passed(self, newest: float) -> None:
        """Stamps up to this were in a piece."""

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """See ``Reader``."""


def take_pieces(reader: Piecewise, run: RunStateRecorder, number: int, pieces: Pieces, block: str, other: Other) -> int:
    """Take the ``pieces`` of ``block``, of which the first line has ``number``; how many lines it has."""
    texts: list[str] = []
    at = number
    for piece in pieces:
        lines, done = piece, 0
        if type(piece) is not int:
            lines, done = piece[0], _take(reader, run, at, Piece._make(piece))
        if done < lines:
            texts = texts or block.split("\n")
            text = "\n".join(texts[at - number + done : at - number + lines]) + "\n"
            reader.rows(at + done, reader.pattern.findall(text), text, other)
        at += lines
    return at - number


def _take(reader: Piecewise, run: RunStateRecorder, number: int, piece: Piece) -> int:
    """Take a piece, as far as it can be kept as it is; how many of its lines."""
    if not reader.fits(piece):
        return 0
    which = piece.which
    lanes: list[_Lane] = []
    roomy = True
    for place, thread in enumerate(piece.threads):
        runs, outside = which.count(place), which.count(CHANGE + place)
        track = run.lane(thread) if runs or reader.is_outside(thread) else None
        if track is None and runs:
            return 0
        if track is not None:
            if not track.calls:
                return 0
            lanes.append(_Lane(track, place, piece))
            roomy = roomy and len(track.times) + 2 * runs + outside <= track.full
    if piece.last > run.next_mark and (not roomy or piece.changes is not None):
        return 0
    end = piece.lines
    if piece.changes is not None:
        changes = PieceChanges._make(piece.changes)
        done = reader.carry_out(number, piece, changes)
        if done < len(changes.rows):
            end = changes.rows[done]
        _settle(run, lanes, piece, changes, done, roomy=roomy)
    elif piece.last > run.next_mark:
        _pass_marks(run, lanes, piece)
    for lane in lanes:
        lane.go_to(end)
    run.passed(piece.first, piece.last)
    reader.passed(piece.newest)
    return end


class _Lane:
    """Where the events of one thread are kept, and how many of the piece's are there."""

    __slots__ = ("_done", "_place", "_times", "_track", "_which", "_words")

    def __init__(self, track: Track, place: int, piece: Piece) -> None:
        self._track, self._place, self._which = track, place, piece.which
        times, words = piece.lanes[place]
        self._times, self._words = memoryview(times), memoryview(words)
        self._done = 0

    def go_to(self, line: int, more: int = 0) -> None:
        """Keep the events of the lines before ``line``, and ``more`` of it."""
        which, place, done = self._which, self._place, self._done
        count = 2 * which.count(place, 0, line) + which.count(CHANGE + place, 0, line) + more
        if count > done:
            times, words = self._times[DOUBLE * done : DOUBLE * count], self._words[WORD * done : WORD * count]
            self._track.add_all(times, words)
            self._done = count

    def is_of(self, piece: Piece, line: int) -> bool:
        """Whether ``line`` is of this thread."""
        return piece.which[line] == self._place


def _settle(
    run: RunStateRecorder, lanes: list[_Lane], piece: Piece, changes: PieceChanges, done: int, *, roomy: bool
) -> None:
    """Keep the events up to each of the first ``done`` changes, and tell that one is there.

    Of those that are NEAR the one before, only the last has to be told of, since nothing is forgotten in between.
    """
    begins, deletes = memoryview(piece.begins).cast("d"), array("Q", changes.columns[2])
    for first, last in changes.groups:
        stop = min(last + 1, done)
        for i in range(first, stop):
            if i == first or i == stop - 1 or not roomy:
                line = changes.rows[i]
                for lane in lanes:
                    lane.go_to(line + 1)
                gives = deletes[i] > 0
                run.change_at(begins[line], (not gives) if i == first or not roomy else (False if gives else None))


def _pass_marks(run: RunStateRecorder, lanes: list[_Lane], piece: Piece) -> None:
    """Keep the events up to the one that is the last to pass a mark: what the others did, that one does again."""
    mark = run.last_mark_before(piece.last)
    begins, ends = memoryview(piece.begins).cast("d"), memoryview(piece.ends).cast("d")
    line = next(itertools.compress(range(piece.lines), map(mark.__lt__, ends)))
    by_begin = begins[line] > mark
    for lane in lanes:
        lane.go_to(line, int(not by_begin and lane.is_of(piece, line)))
    run.pass_marks(begins[line] if by_begin else ends[line])
