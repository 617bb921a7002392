"""Frames that come back in a later transaction, of which nobody can tell whether it was a slow one or two.

Where a transaction ends is inferred (``traces.grouping``), and the longest holes are those that the pause in them, or a
change of thread, seems to end. So frames that one transaction took away and a later one of the same address space gave
back are reported too. Two things show that there were two steps: QEMU finishes one address space before it begins the
next, and no VMM runs a vCPU inside a step, so after that the very same slot was switched off and on, as a guest does
with a BAR. That is said in a note; where something else comes back than what went, another VMM may mean one step.
"""

from __future__ import annotations

import enum
import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..traces.columns import CREATE, KIND, MOVE, SEPARATIONS
from ..traces.timeline import Separation
from ..units import PAGE_SHIFT
from .missing import Missing
from .spans import merged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..traces.columns import Transactions
    from ..traces.timeline import RecordedChange
    from .missing import Piece

__all__ = ["LATEST", "LateReturn", "LateReturns", "Why"]

PAUSE, THREAD, SPACE, RUN, ORDER = (
    SEPARATIONS.index(each)
    for each in (Separation.PAUSE, Separation.THREAD, Separation.SPACE, Separation.RUN, Separation.ORDER)
)
LATEST = 60.0
"""Seconds. What comes back later than that was unplugged and plugged; so was, after LATEST_ELSEWHERE, what another
thread or a later step gave back."""
LATEST_ELSEWHERE = 1.0
MANY = 64
"""Transactions that leave nothing missing, from which on they are counted as a whole."""


class Why(enum.Enum):
    """What tells the two transactions apart.

    PAUSE: time alone. THREAD: another thread. ORDER: a step in between. SPACE: the thread changed another address space
    in between. RUN: the thread ran its vCPU in between.
    """

    PAUSE = "pause"
    THREAD = "thread"
    ORDER = "order"
    SPACE = "space"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class LateReturn:
    """Frames that ``removed`` and the transaction around it took away, and that of ``restored`` gave back.

    ``frames`` are merged ranges; ``why`` says what tells the two transactions apart; ``gap`` is the ``--gap`` in
    seconds that would make them one, or None if none does.
    """

    as_id: int
    frames: tuple[tuple[int, int], ...]
    removed: RecordedChange
    restored: RecordedChange
    why: Why
    gap: float | None

    @property
    def npages(self) -> int:
        """How many frames were missing."""
        return sum(end - start for start, end in self.frames)

    @property
    def duration(self) -> float | None:
        """Seconds from the first delete's stamp to the last create's; None without stamps."""
        if self.removed.time is None or self.restored.time is None:
            return None
        return self.restored.time - self.removed.time

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it; addresses and sizes in bytes, times in seconds."""
        return {
            "first_line": self.removed.line,
            "last_line": self.restored.line,
            "thread": self.removed.thread,
            "address_space": self.as_id,
            "seconds": self.duration,
            "why": self.why.value,
            "gap": self.gap,
            "bytes": self.npages << PAGE_SHIFT,
            "frames": [{"gpa": start << PAGE_SHIFT, "size": (end - start) << PAGE_SHIFT} for start, end in self.frames],
        }


Mark = tuple[int, int, int, int]


class _Space:
    """What is missing in one address space, and how its transactions so far were told apart."""

    __slots__ = ("mark", "missing", "pause")

    def __init__(self) -> None:
        self.missing = Missing()
        self.mark = (0, 0, 0, 0)
        """How often another address space, another thread, the order, and a vCPU told transactions apart so far."""
        self.pause = 0.0

    def tell_apart(self, why: int, pause: float) -> None:
        """The next transaction begins, for this reason: a place in SEPARATIONS."""
        if why == PAUSE:
            if pause > self.pause:
                self.pause = pause
            return
        self.pause = 0.0
        space, thread, order, run = self.mark
        if why == ORDER:
            self.mark = space, thread, order + 1, run
        elif why == THREAD:
            self.mark = space, thread + 1, order, run
        elif why == SPACE:
            self.mark = space + 1, thread, order, run
        elif why == RUN:
            self.mark = space, thread, order, run + 1


@dataclass(slots=True)
class _Found:
    """A LateReturn in the making; changes by their place among all."""

    key: tuple[int, Mark, Why]
    removed: int
    restored: int
    gap: float
    spans: list[tuple[int, int]]


class LateReturns:
    """Takes the transactions in order, and finds what comes back in a later one. O(n log n) in all."""

    __slots__ = ("_changes", "_found", "_marks", "_spaces", "_toggled", "_toggles", "_transactions")

    def __init__(self, transactions: Transactions) -> None:
        self._transactions, self._changes = transactions, transactions.changes
        self._found: list[_Found] = []
        self._spaces: dict[int, _Space] = {}
        self._toggles = 0
        self._toggled: tuple[int, int] | None = None
        """The first slot that was switched off and on, as the delete and the create of it, and how many there are."""
        self._marks: dict[int, Mark] = {}
        """By change that took missing frames away: how transactions had been told apart until then."""

    def follow(self, number: int, left: Sequence[Piece]) -> None:
        """Go on with transaction ``number``; ``left`` is what is still missing at its end."""
        transactions = self._transactions
        as_id = transactions.as_id(number)
        space = self._spaces.get(as_id)
        if space is None:
            space = self._spaces[as_id] = _Space()
        space.tell_apart(transactions.separations[number], transactions.pauses[number])
        if len(space.missing):
            self._give(number, as_id, space)
        if left:
            mark = space.mark
            for piece in left:
                self._marks[piece[3]] = mark
                space.missing.add(piece)

    def follow_all(self, first: int, last: int, left: Mapping[int, Sequence[Piece]]) -> None:
        """``follow`` the transactions ``[first, last)``; ``left`` has those that leave something missing."""
        for number in (*sorted(left), last):
            self._follow_whole(first, number)
            if number < last:
                self.follow(number, left[number])
                first = number + 1

    def _follow_whole(self, first: int, last: int) -> None:
        """Go on with the transactions ``[first, last)``, which leave nothing missing."""
        changes = self._changes
        space = self._spaces.get(self._transactions.as_id(first)) if last - first > MANY else None
        is_one = max(changes.slot, default=0) >> 16 == min(changes.slot, default=0) >> 16 if space else False
        if space is None or len(space.missing) or not is_one:
            for number in range(first, last):
                self.follow(number, ())
            return
        whys, pauses = self._transactions.separations[first:last].tobytes(), self._transactions.pauses[first:last]
        counts = (whys.count(SPACE), whys.count(THREAD), whys.count(ORDER), whys.count(RUN))
        apart = len(whys.rstrip(bytes((PAUSE,))))
        """Behind that, pauses alone told the transactions apart."""
        space.pause = max(pauses[apart:], default=0.0) if apart else max(space.pause, *pauses)
        space.mark = tuple(map(operator.add, space.mark, counts))

    def _give(self, number: int, as_id: int, space: _Space) -> None:
        """Find what transaction ``number`` gives back of what is missing."""
        now, changes = space.mark, self._changes
        for index in self._transactions.indices(number):
            if changes.code[index] & KIND not in (CREATE, MOVE):
                continue
            base, npages = changes.base[index], changes.npages[index]
            for start, end, _, taker in space.missing.take(base, base + npages):
                mark = self._marks[taker]
                why = _why(mark, now)
                if why in (Why.SPACE, Why.RUN):
                    old = changes.old_slot(taker)
                    if old is not None and old[2:5] == (base, npages, changes.hva[index]):
                        self._toggles += 1
                        self._toggled = self._toggled or (taker, index)
                        continue
                seconds = changes.time[index] - changes.time[taker]
                if not seconds <= (LATEST if why is Why.PAUSE else LATEST_ELSEWHERE):  # or there are no stamps
                    continue
                self._add(_Found((as_id, mark, why), taker, index, space.pause, [(start, end)]))

    def _add(self, found: _Found) -> None:
        """Note what was found, as one with what came back the same way just before."""
        if self._found and self._found[-1].key == found.key:
            before = self._found[-1]
            before.removed = min(before.removed, found.removed)
            before.restored, before.gap = found.restored, max(before.gap, found.gap)
            before.spans += found.spans
        else:
            self._found.append(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was switched off and on, in a sentence; nothing if nothing was. O(1)."""
        if self._toggled is None:
            return ()
        count = self._toggles
        removed, restored = (self._changes.line[i] for i in self._toggled)
        note = (
            f"{count} time{'s' * (count != 1)} the same slot came back after another step of the thread that took it: "
            "switched off and on, as a guest does with a BAR, and no hole, if the VMM is QEMU; one that does it in one "
            f"step has a hole there (first: lines {removed}-{restored})"
        )
        return (note,)

    def result(self) -> tuple[LateReturn, ...]:
        """All that came back late, in order."""
        return tuple(
            LateReturn(
                each.key[0],
                merged(each.spans),
                self._changes[each.removed],
                self._changes[each.restored],
                each.key[2],
                _next_ms(each.gap) if each.key[2] is Why.PAUSE else None,
            )
            for each in self._found
        )


def _why(mark: Mark, now: Mark) -> Why:
    """What told transactions apart between two marks, the more telling first."""
    for index, why in ((0, Why.SPACE), (3, Why.RUN), (1, Why.THREAD), (2, Why.ORDER)):
        if now[index] != mark[index]:
            return why
    return Why.PAUSE


def _next_ms(seconds: float) -> float:
    """``seconds`` up to the next whole millisecond.

    >>> _next_ms(0.0139), _next_ms(0.014)
    (0.014, 0.014)
    """
    return math.ceil(round(seconds * 1e3, 6)) / 1e3
