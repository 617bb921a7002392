"""Explore: deterministic schedules over the very functions that run, searched whole or by chance.

``Model`` and ``Scene`` say what is searched, ``explore`` searches and reports, ``replay`` follows a counterexample;
``load`` imports the package a second time, in its interpreted form, or as a mutant. docs/explore.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .finding import Finding as Finding
    from .mutants import Mutant as Mutant
    from .outcome import Budget as Budget
    from .outcome import Outcome as Outcome
    from .scene import Model as Model
    from .scene import Scene as Scene
    from .search import Counterexample as Counterexample
    from .search import Report as Report
    from .search import explore as explore
    from .search import replay as replay
    from .search import tasks as tasks
    from .task import Task as Task
    from .task import run as run
    from .twin import Mutation as Mutation
    from .twin import Twin as Twin
    from .twin import load as load
    from .view import View as View

face(globals())
