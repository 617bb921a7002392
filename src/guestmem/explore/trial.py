"""Trying mutants: whether the models that must find them do, by which property, and in how many runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .finding import Finding
from .models import find
from .mutants import Mutant
from .outcome import Budget, Outcome
from .own import with_mutant
from .parallel import pooled
from .scene import Model
from .search import tasks
from .task import run
from .world import World

__all__ = ["NO_CODE", "STATES", "Verdict", "try_mutant", "try_mutants"]

STATES, _RUNS = 400_000, 3_000
"""How far each search goes: a mutant that is not found by then counts as one that survives."""
NO_CODE = {"NameError", "UnboundLocalError", "AttributeError", "TypeError", "SyntaxError", "ImportError"}
"""What only code that is none raises: that it was found says nothing of the model."""


@dataclass(frozen=True)
class Verdict:
    """What one model said to one mutant. ``finding`` is None if the mutant survived.

    ``runs``: schedules (or, of a search over states, states) until it was found, over all searches; ``search`` is the
    one that found it.
    """

    mutant: Mutant
    model: str
    finding: Finding | None
    search: str
    runs: int
    seconds: float
    why: str = ""
    """Of one that was not caught: why, if it is known."""

    @property
    def caught(self) -> bool:
        """Whether the model found it."""
        return self.finding is not None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.finding
        return {
            "mutant": self.mutant.name,
            "what": self.mutant.what,
            "origin": self.mutant.origin,
            "file": self.mutant.file,
            "model": self.model,
            "caught": self.caught,
            "kind": found.kind if found else "",
            "property": found.name if found else "",
            "message": found.message if found else "",
            "where": str(found.where or "") if found else "",
            "why": self.why,
            "search": self.search,
            "runs": self.runs,
            "seconds": round(self.seconds, 3),
        }


def try_mutant(
    mutant: Mutant, named: str | Model, *, seconds: float = 60.0, stopped: Callable[[], bool] | None = None
) -> Verdict:
    """Search a model with a mutant in it, the mutant's memory model first, until something is found.

    Code that is none (a name that is not there) is not caught, whatever raised. Raises UsageError if the mutant's text
    is not in the sources exactly once.
    """
    model, mutations = with_mutant(find(named) if isinstance(named, str) else named, mutant)
    begun = time.monotonic()
    searches = 0
    todo = tasks(model, mutations=mutations, random=None if model.exhaustive else _RUNS)
    with World(model, mutations) as world:
        if mutant.memory != "sc":  # few begin again for a shared word if some runs have found most of them
            run(replace(todo[0], search="random", last=_RUNS), Budget(go_on=True, stopped=stopped), world=world)
        for task in sorted(todo, key=lambda task: task.memory != mutant.memory):
            left = begun + seconds - time.monotonic()
            if left <= 0 or (stopped is not None and stopped()):
                break
            outcome = run(task, Budget(seconds=left, states=STATES, stopped=stopped), world=world)
            searches += _count(outcome)
            if outcome.findings:
                found = replace(outcome.findings[0], found_by=outcome.search, after_runs=searches)
                how, seconds = f"{outcome.search} {outcome.memory}", time.monotonic() - begun
                if found.kind == "error" and found.name in NO_CODE:
                    why = f"is no code that could run: {found.name}: {found.message}"
                    return Verdict(mutant, model.name, None, how, searches, seconds, why)
                return Verdict(mutant, model.name, found, how, searches, seconds)
    return Verdict(mutant, model.name, None, "", searches, time.monotonic() - begun)


def _count(outcome: Outcome) -> int:
    return outcome.distinct if outcome.search == "states" else outcome.runs + outcome.pruned


def try_mutants(
    chosen: Iterable[tuple[Mutant, Model]],
    *,
    seconds: float = 60.0,
    jobs: int = 1,
    stopped: Callable[[], bool] | None = None,
) -> Iterator[Verdict]:
    """Each mutant against its model, in their order, in ``jobs`` processes; ends early when ``stopped()``.

    ``seconds`` are those of each trial, which is begun when a process is free for it.
    """
    if jobs > 1:
        yield from pooled(jobs, partial(_trial, seconds), chosen, stopped=stopped)
        return
    for mutant, model in chosen:
        if stopped is not None and stopped():
            return
        yield try_mutant(mutant, model, seconds=seconds, stopped=stopped)


def _trial(seconds: float, pair: tuple[Mutant, Model], stopped: Callable[[], bool]) -> Verdict:
    return try_mutant(*pair, seconds=seconds, stopped=stopped)
