"""What models run of the sources: which functions, and which branches of them, from a trace of their threads.

A model says something only of code that its threads run. Each model's threads are followed in random runs, then in its
search over states (sequentially consistent), as far as a budget goes; what properties and ``build`` call does not
count. A branch that was taken was taken; of one that was not, only searches that were complete say that the model
cannot take it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .outcome import Budget, Outcome
from .probes import UNPROBED, Branch, probed
from .scene import Model
from .task import Task, run
from .unreached import reason
from .world import World

__all__ = ["STATES", "Coverage", "FileCoverage", "Trace", "trace", "traces"]

STATES = 20_000
"""States that a model's search is followed for, unless told otherwise."""
_RUNS = 100
_OUTSIDE = "runs only when no thread does: in a model's build, or in a property"
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Trace:
    """What one model's threads ran: ``taken`` of ``branches``; ``complete``: its search was whole.

    ``outside``: what ran when no thread did: ``build``, and properties.
    """

    model: str
    taken: frozenset[Branch]
    outside: frozenset[Branch]
    branches: tuple[Branch, ...]
    complete: bool
    states: int
    seconds: float

    @property
    def functions(self) -> dict[str, list[str]]:
        """By file the functions that were called, in the order of the file."""
        found: dict[str, list[str]] = {}
        for branch in self.branches:
            if branch.what == "called" and branch in self.taken:
                found.setdefault(branch.file, []).append(branch.function)
        return dict(sorted(found.items()))


def trace(
    model: Model,
    *,
    seconds: float | None = None,
    states: int = STATES,
    stopped: Callable[[], bool] | None = None,
    progress: Callable[[Outcome], object] | None = None,
) -> Trace:
    """Follow a model's threads: some random runs, then its search over states, not stopping at what is found."""
    begun = time.monotonic()
    with World(model, traced=True) as world:
        half = None if seconds is None else seconds / 2
        budget = Budget(seconds=half, go_on=True, stopped=stopped, progress=progress)
        outcome = run(Task(model, "random", last=_RUNS), budget, world=world)
        if model.exhaustive:
            budget = Budget(seconds=half, states=states, go_on=True, stopped=stopped, progress=progress)
            outcome = run(Task(model, "states"), budget, world=world)
        taken = frozenset(branches[number] for branches, numbers, _ in world.taken for number in numbers)
        outside = frozenset(branches[number] for branches, _, numbers in world.taken for number in numbers)
        every = tuple(branch for branches, _, _ in world.taken for branch in branches)
    complete = outcome.complete and outcome.search == "states"
    return Trace(model.name, taken, outside, every, complete, outcome.distinct, time.monotonic() - begun)


def traces(
    models: Iterable[Model],
    *,
    seconds: float | None = None,
    states: int = STATES,
    stopped: Callable[[], bool] | None = None,
    progress: Callable[[Outcome], object] | None = None,
) -> Iterator[Trace]:
    """The traces of models, as they are done; ends early when ``stopped()``. ``seconds`` are for each."""
    for model in models:
        found = trace(model, seconds=seconds, states=states, stopped=stopped, progress=progress)
        if stopped is not None and stopped():
            return
        yield found


@dataclass
class FileCoverage:
    """Of one file its concurrent functions, their branches, and the operations on shared words in these."""

    file: str
    branches: list[Branch] = field(default_factory=list)
    missed: list[Branch] = field(default_factory=list)

    @property
    def functions(self) -> tuple[int, int]:
        """How many some model calls, of how many."""
        missed = sum(branch.what == "called" for branch in self.missed)
        every = sum(branch.what == "called" for branch in self.branches)
        return every - missed, every

    @property
    def ways(self) -> tuple[int, int]:
        """How many branches some model takes, of how many."""
        return len(self.branches) - len(self.missed), len(self.branches)

    @property
    def atomics(self) -> tuple[int, int]:
        """How many operations stand in branches that some model takes, of how many."""
        missed, every = (sum(branch.atomics for branch in some) for some in (self.missed, self.branches))
        return every - missed, every


class Coverage:
    """What some models together run of the package's concurrent functions: compiled, on words that threads share.

    With models of the user's own, of all functions of their files instead.
    """

    def __init__(self) -> None:
        self.models: dict[str, bool] = {}
        """By name: whether its search was complete."""
        self._by: dict[Branch, list[str]] = {}
        self._outside: set[Branch] = set()
        self._own: dict[Branch, None] = {}

    def add(self, found: Trace) -> None:
        """Take a model's trace in."""
        self.models[found.model] = found.complete
        self._outside |= found.outside
        for branch in found.taken:
            self._by.setdefault(branch, []).append(found.model)
        known = {branch.file for branch in _package()}
        self._own |= dict.fromkeys(branch for branch in found.branches if branch.file not in known)

    @property
    def files(self) -> list[FileCoverage]:
        """By file, in the order of names and lines."""
        found: dict[str, FileCoverage] = {}
        for branch in self._own or _package():
            if branch.shared or self._own:
                each = found.setdefault(branch.file, FileCoverage(branch.file))
                each.branches.append(branch)
                if branch not in self._by:
                    each.missed.append(branch)
        return list(found.values())

    def models_of(self, branch: Branch) -> Sequence[str]:
        """The models that take a branch."""
        return self._by.get(branch, ())

    def why(self, branch: Branch) -> str:
        """Why no model takes a branch: by ``unreached.py``, or as seen; empty if nobody knows."""
        return reason(branch) or (_OUTSIDE if branch in self._outside else "")

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "models": [{"model": name, "complete": complete} for name, complete in self.models.items()],
            "files": [
                {
                    "file": each.file,
                    "functions": each.functions,
                    "branches": each.ways,
                    "operations": each.atomics,
                    "taken": [self._told(b, models=self.models_of(b)) for b in each.branches if b in self._by],
                    "missed": [self._told(b, reason=self.why(b)) for b in each.missed],
                }
                for each in self.files
            ],
        }

    @staticmethod
    def _told(branch: Branch, **more: object) -> dict[str, object]:
        where = {"function": branch.function, "line": branch.line, "branch": branch.what}
        return {**where, "operations": branch.atomics, **more}


@cache
def _package() -> tuple[Branch, ...]:
    """All branches of all sources of the package, whether a model loads them or not."""
    found: list[Branch] = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        file = path.relative_to(_PACKAGE).as_posix()
        if not file.startswith("explore/") and file not in UNPROBED:
            found += probed(path.read_text(), file)[1]
    return tuple(found)
