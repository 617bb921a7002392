"""The result of a check: all holes of a timeline, and what is needed to judge them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..memslots.changes import ChangeKind
from ..traces.collector import without_collector
from .holes import Hole, hole_of, walk_of
from .late import LateReturn, LateReturns
from .lint import Remark, lint
from .rules import Verdict

if TYPE_CHECKING:
    from ..traces.timeline import Timeline

__all__ = ["SCHEMA", "Report", "check"]

SCHEMA = "guestmem-check-1"
"""Name of the form of ``Report.as_dict()``; ``docs/traces.md`` describes it."""


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
    holes: tuple[Hole, ...]
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
        return {verdict: sum(hole.verdict is verdict for hole in self.holes) for verdict in Verdict}

    @property
    def longest(self) -> Hole | None:
        """The hole that lasted longest; without times, the one that took most memory."""
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


def check(timeline: Timeline, *, with_lint: bool = True) -> Report:
    """Find every hole of ``timeline``, in order, and, unless ``with_lint`` is False, what else has hurt others.

    O(n log n) in its changes.

    >>> from guestmem import traces
    >>> report = check(traces.read("examples/traces/pc-seabios-smp2.log"))
    >>> [(hole.first_line, hole.last_line) for hole in report.holes]
    [(3, 7), (8, 9), (10, 16), (17, 21), (25, 31), (32, 35)]
    """
    counts = dict.fromkeys((kind.value for kind in ChangeKind), 0)
    refused, timed = 0, bool(timeline.changes)
    for each in timeline.changes:
        if each.ret < 0:
            refused += 1
        else:
            counts[each.kind.value] += 1
        timed = timed and each.time is not None
    holes: list[Hole] = []
    later = LateReturns()
    with without_collector():
        for transaction in timeline.transactions:
            walked = walk_of(transaction)
            if walked is not None:
                hole = hole_of(transaction, walked, timeline.run_state, timeline.resolution)
                if hole is not None:
                    holes.append(hole)
            later.follow(transaction, walked)
    return Report(
        path=timeline.path,
        format=timeline.format,
        lines=timeline.lines,
        skipped=timeline.skipped,
        changes=counts,
        refused=refused,
        transactions=len(timeline.transactions),
        gap=timeline.gap,
        timed=timed,
        run_state=None if timeline.run_state is None else str(timeline.run_state),
        holes=tuple(holes),
        late=later.result(),
        slow=timeline.slow,
        notes=(*timeline.notes, *later.notes),
        remarks=lint(timeline, holes) if with_lint else (),
    )
