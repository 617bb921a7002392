"""One piece of a search, complete in itself: what a process, or a machine, is handed, and what it hands back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..errors import UsageError
from .abreast_states import AbreastStates
from .compact import CompactStates
from .dpor import Dpor
from .finding import Finding
from .machine import Buffers, Machine
from .outcome import Budget, Outcome
from .parts import Part
from .sampling import Sampling
from .scene import Model
from .stale import Stale
from .states import States
from .store import Store
from .tree import Tree
from .twin import Mutation
from .world import Reshaped, Undetermined, World

__all__ = ["MEMORIES", "Task", "machine", "run"]

_FIRST_RUNS, _MORE_RUNS = 20, 200
"""Runs by chance that find no new shared word, before a search; and once one that was long had to begin again."""
_LONG = 20_000

MEMORIES = ("sc", "tso", "relaxed", "stale")
"""Memory models: see ``machine.py`` and ``stale.py``."""


@dataclass(frozen=True)
class Task:
    """Search ``search`` (states, dpor, random, pct) of a model under ``memory``, or a part of one.

    ``compact``: keep hashes of states, in a table of so many MiB (``compact.py``). ``seed``, ``first``, ``stride`` and
    ``last`` say which runs of a random search; ``depth`` is PCT's. ``part`` is a part of a DPOR search between
    ``points`` (``parts.split``); such a task stops as "reshaped" if it needs more points. ``threads``: of a search over
    states without a bound, which keeps states.
    """

    model: Model
    search: str
    memory: str = "sc"
    mutations: tuple[Mutation, ...] = ()
    bound: int | None = None
    compact: int | None = None
    seed: int = 1
    first: int = 0
    stride: int = 1
    last: int | None = None
    depth: int | None = None
    part: Part | None = None
    points: tuple[int, ...] = ()
    threads: int = 1

    @property
    def name(self) -> str:
        """What tells it from other tasks of a search."""
        return f"{self.model.name} {self.search} {self.memory} {self.first}"


def machine(world: World, memory: str, points: Iterable[int] | None = None, *, merged: bool = False) -> Machine:
    """A machine with an empty tree, stopping at the world's points or at others. Raises Reshaped.

    ``merged``: see ``Tree``.
    """
    if memory not in MEMORIES:
        raise UsageError(f"memory: {memory!r} is not one of {', '.join(MEMORIES)}")
    tree = Tree(world, fences=memory != "sc", points=points, merged=merged)
    if memory == "sc":
        return Machine(tree)
    return Stale(tree) if memory == "stale" else Buffers(tree, overtake=memory == "relaxed")


def run(task: Task, budget: Budget, *, world: World | None = None, store: Store | None = None) -> Outcome:
    """Carry out a task; in ``world``, else in one of its own. With ``store``, from where that was left."""
    if world is None:
        with World(task.model, task.mutations) as own:
            return run(task, budget, world=own, store=store)
    collects = gc.isenabled()
    gc.disable()  # what a search makes it keeps: millions of tuples, looked through in vain again and again
    try:
        return _run(task, budget, world, store)
    finally:
        if collects:
            gc.enable()


def _run(task: Task, budget: Budget, world: World, store: Store | None) -> Outcome:
    world.points.update(task.points)
    if store is not None:
        world.points.update(store.points(task.model.name))
    found: list[Finding] = []
    """By runs that met a new point: the search begins again, and need not come by there."""
    if not world.points and task.search in {"states", "dpor"}:
        found = _sample(world, _FIRST_RUNS)
    more = True
    while True:
        outcome = Outcome(task.model.name, task.search, task.memory, task.bound)
        points = tuple(sorted(world.points))
        try:
            search = _search(task, world, outcome)
            if store is not None:
                store.restore(task.name, search, outcome)
                if outcome.complete or outcome.stopped == "finding":
                    return outcome
                outcome.stopped = ""
                budget.checkpoint = _saver(store, task, search, world)
            search.run(budget)
            world.check()
            search.machine.tree.check()
            outcome.shared = len(world.points)
            outcome.findings = _with(points, outcome)
            whole = outcome.complete and task.search in {"states", "dpor"}
            if not whole and (budget.go_on or not outcome.findings):
                for finding in found if budget.go_on else found[:1]:
                    outcome.add(finding)
        except Undetermined as what:
            raise UsageError(str(what)) from None
        except Reshaped:
            if task.part is not None:
                outcome.stopped = "reshaped"
                outcome.shared = len(world.points)
                return outcome
            found += _with(points, outcome)
            if store is not None:
                store.forget(task.name)
            if more and outcome.points > _LONG and task.search in {"states", "dpor"}:
                more = False
                found += _sample(world, _MORE_RUNS)
            continue
        finally:
            budget.checkpoint = None
        if store is not None:
            store.save(task.name, search, outcome, world)
        return outcome


def _with(points: tuple[int, ...], outcome: Outcome) -> list[Finding]:
    """What was found between these points, to be told between them whatever else becomes one."""
    return [replace(finding, points=points) for finding in outcome.findings]


def _sample(world: World, runs: int) -> list[Finding]:
    """Find most shared words by random runs, until so many find none: an exhaustive search begins again for each.

    Returns what went wrong in them, if no search comes by there. Not a run without end: chance may starve a thread.
    """
    found: list[Finding] = []
    while True:
        outcome = Outcome(world.model.name, "random", "sc")
        points = tuple(sorted(world.points))
        try:
            Sampling(lambda: machine(world, "sc"), outcome, seed=1, last=runs).run(Budget(go_on=True))
        except Reshaped:
            continue
        finally:
            found += [finding for finding in _with(points, outcome) if finding.kind != "livelock"]
        return found


def _saver(store: Store, task: Task, search: States | Dpor | Sampling, world: World) -> Callable[[], object]:
    return lambda: store.save(task.name, search, search.outcome, world)


def _search(task: Task, world: World, outcome: Outcome) -> States | Dpor | Sampling:
    if task.search == "states" and task.compact is not None:
        return CompactStates(machine(world, task.memory, merged=True), outcome, mib=task.compact)
    if task.search == "states" and task.threads > 1 and task.bound is None:
        return AbreastStates(machine(world, task.memory, merged=True), outcome, threads=task.threads)
    if task.search == "states":
        return States(machine(world, task.memory, merged=True), outcome, bound=task.bound)
    if task.search == "dpor":
        return Dpor(machine(world, task.memory), outcome, part=task.part or ((), 0))
    if task.search in {"random", "pct"}:
        return Sampling(
            lambda: machine(world, task.memory),
            outcome,
            seed=task.seed,
            last=task.last,
            depth=task.depth,
            first=task.first,
            stride=task.stride,
        )
    raise UsageError(f"search: {task.search!r} is not one of states, dpor, random, pct")
