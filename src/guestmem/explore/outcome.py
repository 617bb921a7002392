"""What one search of one model under one memory model came to, and how far it may go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .finding import Finding

__all__ = ["Budget", "Outcome"]

CHECKPOINT_S = 10.0
_SHOW_S = 0.2


@dataclass
class Outcome:
    """One search: ``search`` is states, dpor, random or pct; ``memory`` is sc, tso, relaxed or stale.

    ``complete``: everything within the bounds was searched. Else ``stopped`` says why not. ``runs`` are schedules from
    start to end (dpor, random, pct), ``pruned`` those cut short as equivalent to others. ``points`` counts schedule
    points passed, or transitions (states). ``code_runs``: how often a thread's code ran. ``bytes``: what
    states take, with their parents and their hash slots. ``left``: a guess at how many are still to come. ``finals``:
    the distinct ends, as hashes (``Judge.end``). ``loops``: whether a thread can come back to where it was;
    ``cut``: whether one was left in a loop that differs each time, after ``Model.steps`` points.
    """

    model: str
    search: str
    memory: str
    bound: int | None = None
    complete: bool = False
    stopped: str = ""
    runs: int = 0
    pruned: int = 0
    distinct: int = 0
    points: int = 0
    depth: int = 0
    code_runs: int = 0
    shared: int = 0
    bytes: int = 0
    left: int | None = None
    loops: bool = False
    cut: bool = False
    seconds: float = 0.0
    note: str = ""
    findings: list[Finding] = field(default_factory=list)
    finals: set[int] = field(default_factory=set)

    def add(self, finding: Finding) -> bool:
        """Keep a finding unless its like is there; whether it is new."""
        if any(known.key == finding.key for known in self.findings):
            return False
        self.findings.append(finding)
        return True

    @property
    def rate(self) -> float:
        """Runs a second, or of a search over states: transitions a second."""
        return (self.points if self.search == "states" else self.runs) / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in vars(self).items() if name not in {"findings", "finals"}}


class Budget:
    """How far a search may go; also what it does now and then: show progress, write a checkpoint."""

    def __init__(
        self,
        *,
        seconds: float | None = None,
        runs: int | None = None,
        states: int | None = None,
        go_on: bool = False,
        progress: Callable[[Outcome], object] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        self.runs, self.states, self.go_on = runs, states, go_on
        self.checkpoint: Callable[[], object] | None = None
        self.checkpoint_s = CHECKPOINT_S
        self._progress, self._stopped = progress, stopped
        self.begun = time.monotonic()
        self._end = None if seconds is None else self.begun + seconds
        self._saved = self._shown = self.begun

    def without_limits(self) -> Budget:
        """One that only Ctrl-C ends."""
        return Budget(progress=self._progress, stopped=self._stopped)

    def over(self, outcome: Outcome, begun: float) -> bool:
        """Whether the search has to stop, which the outcome then says. To be asked every few milliseconds."""
        now = time.monotonic()
        outcome.seconds = now - begun
        if self._progress is not None and now - self._shown > _SHOW_S:
            self._shown = now
            self._progress(outcome)
        if self.checkpoint is not None and now - self._saved > self.checkpoint_s:
            self.checkpoint()
            self._saved = time.monotonic()
        if self._end is not None and now > self._end:
            outcome.stopped = "time"
        elif self.runs is not None and outcome.runs >= self.runs:
            outcome.stopped = "runs"
        elif self.states is not None and outcome.distinct >= self.states:
            outcome.stopped = "states"
        elif self._stopped is not None and self._stopped():
            outcome.stopped = "interrupted"
        return bool(outcome.stopped)
