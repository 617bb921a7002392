"""The result of a check: all holes of a timeline, and what is needed to judge them."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from ..traces.collector import without_collector
from ..traces.columns import KIND, KINDS, REFUSED
from ..traces.second_process import SecondProcess, cores
from .holes import Hole, Holes
from .late import LateReturn, LateReturns
from .lint import Remark, lint
from .missing import walk
from .rules import Verdict
from .verdict import NO_RUN_STATE, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..traces.timeline import Timeline
    from .at_once import Asked, AtOnce
    from .judgement import Judgement
    from .missing import Piece

__all__ = ["SCHEMA", "Report", "check"]

SCHEMA = "guestmem-check-1"
"""Name of the form of ``Report.as_dict()``; ``docs/traces.md`` describes it."""
STEP = 1 << 14
"""Transactions that are looked at in one go."""
BULK = 1 << 16
"""The same, where they are plain."""
MANY_PLAIN = 20_000
"""Transactions from which on NumPy is worth its import, where nothing is known of vCPUs."""
MANY_AT_ONCE = 1000
"""Transactions from which on NumPy is worth its import."""
MANY, OWN_SHARE = 2000, 0.45
"""Transactions from which on a second process looks at some of them, and this process's share; it has more to do."""
MANY_OF_ALL = 50_000
"""The same, where holes are judged at once, so that there is less to share."""


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """All holes of one timeline.

    ``changes`` counts the applied changes by kind, ``refused`` those that KVM refused, ``gap`` is the longest pause in
    seconds inside a transaction. ``run_state`` says in a line what was known of the vCPUs, or is None. ``late`` are
    frames that come back in a later transaction, where nothing shows that there were two. ``slow`` says what made the
    recorder slow, if it was. ``notes`` are sentences about the recording, ``remarks`` what ``lint``
    found.
    """

    path: str
    format: str
    lines: int
    skipped: int
    changes: dict[str, int]
    refused: int
    transactions: int
    gap: float
    timed: bool
    run_state: str | None
    holes: Sequence[Hole]
    late: tuple[LateReturn, ...] = ()
    slow: str = ""
    notes: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()

    def __repr__(self) -> str:
        verdicts = ", ".join(f"{count} {verdict.value}" for verdict, count in self.verdicts.items() if count)
        holes = f"{len(self.holes)} hole{'s' * (len(self.holes) != 1)}"
        return f"Report({self.path!r}: {holes}{': ' * bool(verdicts)}{verdicts})"

    def __str__(self) -> str:
        from ..report.check import brief

        return brief(self)

    def _repr_html_(self) -> str:
        from ..report.check import as_html

        return as_html(self)

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """How many holes have each verdict."""
        if isinstance(self.holes, Holes):
            return dict(self.holes.verdicts)
        return {verdict: sum(hole.verdict is verdict for hole in self.holes) for verdict in Verdict}

    @property
    def longest(self) -> Hole | None:
        """The hole that lasted longest; without times, the one that took most memory."""
        if isinstance(self.holes, Holes):
            return None if self.holes.longest is None else self.holes[self.holes.longest]
        return max(self.holes, key=lambda hole: (hole.duration or 0.0, hole.npages), default=None)

    def fails(self, on: Literal["hole", "open"]) -> bool:
        """Whether there is a hole that was open for certain (``open``), or may have been (``hole``).

        Frames that come back late may have been one.
        """
        verdicts = self.verdicts
        return bool(verdicts[Verdict.OPEN] or (on == "hole" and (verdicts[Verdict.UNKNOWN] or self.late)))

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it; addresses and sizes in bytes, times in seconds."""
        longest = self.longest
        return {
            "schema": SCHEMA,
            "path": self.path,
            "format": self.format,
            "lines": self.lines,
            "skipped_lines": self.skipped,
            "changes": self.changes,
            "refused": self.refused,
            "transactions": self.transactions,
            "gap": self.gap,
            "timed": self.timed,
            "run_state": self.run_state,
            "verdicts": {verdict.value: count for verdict, count in self.verdicts.items()},
            "longest_seconds": longest.duration if longest else None,
            "holes": [hole.as_dict() for hole in self.holes],
            "late": [each.as_dict() for each in self.late],
            "notes": list(self.notes),
            "remarks": [each.as_dict() for each in self.remarks],
        }


_Left = tuple[int, int, "Sequence[Piece]"]
"""Transactions from one on, up to another, and what they leave missing: of more than one, nothing."""


def _look(timeline: Timeline, first: int, last: int, holes: Holes) -> Iterator[_Left]:
    """Add the holes of the transactions ``[first, last)``; yields what each leaves missing."""
    done = first
    if _is_bulk(timeline, last - first):
        from .plain_walks import plain_runs

        for low in range(first, last, BULK):
            for run in plain_runs(timeline.transactions, low, min(low + BULK, last)):
                yield from _look_at_each(timeline, done, run.first, holes)
                holes.add_plain(run, NO_RUN_STATE)
                done = run.first + len(run)
                yield run.first, done, ()
    yield from _look_at_each(timeline, done, last, holes)


def _look_at_each(timeline: Timeline, first: int, last: int, holes: Holes) -> Iterator[_Left]:
    changes, transactions = timeline.changes, timeline.transactions
    judged = _judging(timeline, last - first)
    for low in range(first, last, STEP):
        walks = [
            (number, indices, walk(changes, indices))
            for number, indices in transactions.runs(low, min(low + STEP, last))
        ]
        judgements = judged([(indices, each.returned) for _, indices, each in walks if each and each.returned])
        for number, _, each in walks:
            if each is None:
                yield number, number + 1, ()
                continue
            if each.returned:
                holes.add(number, each.returned, next(judgements))
            yield number, number + 1, each.left


def _is_bulk(timeline: Timeline, transactions: int) -> bool:
    """Whether nothing is known of vCPUs, and there are many transactions, most of which are likely plain."""
    return timeline.run_state is None and transactions >= MANY_PLAIN and find_spec("numpy") is not None


def _is_at_once(timeline: Timeline, transactions: int) -> bool:
    """Whether so many are judged at once."""
    return timeline.run_state is not None and transactions >= MANY_AT_ONCE and find_spec("numpy") is not None


def _judging(timeline: Timeline, transactions: int) -> Callable[[Asked], Iterator[Judgement]]:
    """What judges some holes of ``timeline``: all at once, where that is worth it and NumPy is there, or one by one."""
    changes, run_state, resolution = timeline.changes, timeline.run_state, timeline.resolution
    together: AtOnce | None = None
    if run_state is not None and _is_at_once(timeline, transactions):
        from .at_once import AtOnce

        together = AtOnce(changes, run_state, resolution)

    def judged(asked: Asked) -> Iterator[Judgement]:
        found = together.judgements(asked) if together is not None else itertools.repeat(None)
        for (indices, returned), judgement in zip(asked, found, strict=False):
            yield judgement or judge(changes, indices, returned, run_state, resolution)

    return judged


_Rest = tuple[tuple[Any, ...], list[tuple[int, "Sequence[Piece]"]]]


def _look_from(first: int, timeline: Timeline) -> _Rest:
    """The same of all transactions from ``first`` on, as bytes can hold it."""
    holes = Holes(timeline.transactions)
    left_over = [(n, left) for n, _, left in _look(timeline, first, len(timeline.transactions), holes) if left]
    return holes.packed(), left_over


def check(timeline: Timeline, *, with_lint: bool = True, jobs: int | None = None) -> Report:
    """Find every hole of ``timeline``, in order, and, unless ``with_lint`` is False, what else has hurt others.

    O(n log n) in its changes. ``jobs``: in how many processes, 1 or 2, if there are many; None: as many as there are
    cores. The report is the same.

    >>> from guestmem import traces
    >>> report = check(traces.read("examples/traces/pc-seabios-smp2.log"))
    >>> [(hole.first_line, hole.last_line) for hole in report.holes]
    [(3, 7), (8, 9), (10, 16), (17, 21), (25, 31), (32, 35)]
    """
    changes, transactions = timeline.changes, timeline.transactions
    counted = Counter(changes.code)
    counts = {
        kind.value: sum(n for each, n in counted.items() if each < REFUSED and each & KIND == code)
        for code, kind in enumerate(KINDS)
    }
    holes, later = Holes(transactions), LateReturns(transactions)
    count = len(transactions)
    many = MANY_OF_ALL if _is_at_once(timeline, count) else sys.maxsize if _is_bulk(timeline, count) else MANY
    cut = int(count * OWN_SHARE) if count >= many and cores(jobs) > 1 else count
    with without_collector():
        rest = SecondProcess(lambda: _look_from(cut, timeline)) if cut < count else None
        for first, end, left in _look(timeline, 0, cut, holes):
            if end - first == 1:
                later.follow(first, left)
            else:
                later.follow_all(first, end, {})
        if rest is not None:
            there: _Rest = rest.result() or _look_from(cut, timeline)
            holes.extend(there[0])
            later.follow_all(cut, count, dict(there[1]))
    return Report(
        path=timeline.path,
        format=timeline.format,
        lines=timeline.lines,
        skipped=timeline.skipped,
        changes=counts,
        refused=len(changes) - sum(counts.values()),
        transactions=len(timeline.transactions),
        gap=timeline.gap,
        timed=len(changes) > 0 and not any(map(math.isnan, changes.time)),
        run_state=None if timeline.run_state is None else str(timeline.run_state),
        holes=holes,
        late=later.result(),
        slow=timeline.slow,
        notes=(*timeline.notes, *later.notes),
        remarks=lint(timeline, holes) if with_lint else (),
    )
