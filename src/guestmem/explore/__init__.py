"""Explore: deterministic schedules over the very functions that run, searched whole or by chance.

``Model`` and ``Scene`` say what is searched, ``explore`` searches and reports, ``replay`` follows a counterexample;
``load`` imports the package a second time, in its interpreted form, or as a mutant. docs/explore.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .twin import Mutation, Twin, load

if TYPE_CHECKING:
    from .finding import Finding
    from .mutants import Mutant
    from .outcome import Budget, Outcome
    from .scene import Model, Scene
    from .search import Counterexample, Report, explore, replay, tasks
    from .task import Task, run
    from .view import View

__all__ = [
    "Budget",
    "Counterexample",
    "Finding",
    "Model",
    "Mutant",
    "Mutation",
    "Outcome",
    "Report",
    "Scene",
    "Task",
    "Twin",
    "View",
    "explore",
    "load",
    "replay",
    "run",
    "tasks",
]

_HOMES = {
    "Budget": "outcome",
    "Counterexample": "search",
    "Finding": "finding",
    "Model": "scene",
    "Mutant": "mutants",
    "Outcome": "outcome",
    "Report": "search",
    "Scene": "scene",
    "Task": "task",
    "View": "view",
    "explore": "search",
    "replay": "search",
    "run": "task",
    "tasks": "search",
}


def __getattr__(name: str) -> Any:
    """Import a name's file when it is first asked for: a twin alone needs no scheduler."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
