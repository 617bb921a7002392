"""What models run of the sources: which functions, and which branches of them, from a trace of their threads.

A model says something only of code that its threads run. Each model's threads are followed in random runs, then in its
search over states (sequentially consistent), as far as a budget goes; what properties and ``build`` call does not
count. A branch that was taken was taken; of one that was not, only searches that were complete say that the model
cannot take it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .outcome import Budget, Outcome
from .parallel import pooled
from .probes import UNPROBED, Branch, probed
from .scene import Model
from .task import Task, run
from .unreached import reason
from .world import World

__all__ = ["STATES", "Coverage", "FileCoverage", "Kept", "Trace", "trace", "traces"]

STATES = 20_000
"""States that a model's search is followed for, unless told otherwise."""
_RUNS = 100
_OUTSIDE = "runs only when no thread does: in a model's build, or in a property"
_NEVER = "the models that call the function were searched whole: at their sizes nothing that they ask for leads there"
_UNKNOWN = "unknown: of the models that call the function, some were not searched whole"
_OTHERS = "none of these models calls it; whether another does, and else why not, --coverage without names says"
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

    def as_dict(self) -> dict[str, object]:
        """For a file: see ``Kept``."""
        parts = {name: sorted(getattr(self, name)) for name in ("taken", "outside")}
        return {**vars(self), **parts, "branches": list(self.branches)}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Trace:
        """The inverse of ``as_dict``."""
        names = ("taken", "outside", "branches")
        taken, outside, every = (tuple(Branch(*each) for each in row[name]) for name in names)
        return cls(**{**row, "taken": frozenset(taken), "outside": frozenset(outside), "branches": every})

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
    jobs: int = 1,
    keep: Kept | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Iterator[Trace]:
    """The traces of models, in ``jobs`` processes, as they are done; ends early when ``stopped()``.

    ``seconds`` are for each model.
    With ``keep``, those that are in the file come from there, first, and the others are written to it.
    """
    chosen = tuple(models)
    known = {} if keep is None else keep.read()
    yield from (known[model.name] for model in chosen if model.name in known)
    rest = [model for model in chosen if model.name not in known]
    work = partial(_trace, seconds, states)
    never = stopped or (lambda: False)
    found = (
        pooled(jobs, work, rest, ordered=False, stopped=stopped) if jobs > 1 else (work(model, never) for model in rest)
    )
    for each in found:
        if never():
            return
        if keep is not None:
            keep.write(each)
        yield each


def _trace(seconds: float | None, states: int, model: Model, stopped: Callable[[], bool]) -> Trace:
    return trace(model, seconds=seconds, states=states, stopped=stopped)


class Kept:
    """A file of traces, a line each, so that a long run can go on: for the very sources and options it was begun with.

    Raises UsageError for a file that is none, or of other sources or options.
    """

    def __init__(self, path: str | Path, options: Iterable[object]) -> None:
        self.path = Path(path)
        digest = hashlib.sha256(repr((*options, sys.version_info[:2])).encode())
        for source in sorted(_PACKAGE.rglob("*.py")):
            digest.update(source.name.encode() + source.read_bytes())
        self._stamp = digest.hexdigest()
        if not self.path.exists():
            self.path.write_text(json.dumps({"coverage": self._stamp}) + "\n")

    def read(self) -> dict[str, Trace]:
        """The traces that are there, by model. A last line that was cut short is left out."""
        try:
            first, *lines = self.path.read_text().splitlines(keepends=True)
            stamp = json.loads(first)["coverage"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{self.path}: is no file of --coverage") from None
        if stamp != self._stamp:
            raise UsageError(f"{self.path}: was begun with other sources or options; begin a new file")
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            self.path.write_text(first + "".join(whole))
        return {each.model: each for each in (Trace.from_dict(json.loads(line)) for line in whole)}

    def write(self, found: Trace) -> None:
        """Add a trace."""
        with self.path.open("a") as file:
            file.write(json.dumps(found.as_dict()) + "\n")


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

    With models of the user's own, of all functions of their files instead. ``every``: all models are followed.
    """

    def __init__(self, *, every: bool = True) -> None:
        self._every = every
        self.models: dict[str, bool] = {}
        """By name: whether its search was complete."""
        self._by: dict[Branch, list[str]] = {}
        self._callers: dict[tuple[str, str], list[str]] = {}
        self._outside: set[Branch] = set()
        self._own: dict[Branch, None] = {}

    def add(self, found: Trace) -> None:
        """Take a model's trace in."""
        self.models[found.model] = found.complete
        self._outside |= found.outside
        for branch in found.taken:
            self._by.setdefault(branch, []).append(found.model)
            if branch.what == "called":
                self._callers.setdefault((branch.file, branch.function), []).append(found.model)
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
        """Why no model takes a branch: of a function that none calls, by ``unreached.py``; else as seen.

        Empty for a function that none calls if nobody knows.
        """
        callers = self._callers.get((branch.file, branch.function), ())
        if not callers:
            return reason(branch) or (_OUTSIDE if branch in self._outside else "" if self._every else _OTHERS)
        return _NEVER if all(self.models[name] for name in callers) else _UNKNOWN

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
