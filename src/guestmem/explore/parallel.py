"""A search cut into tasks for several processes: each of its searches, DPOR in parts, random runs in strides."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from .dpor import split
from .outcome import Budget, Outcome
from .scene import Model
from .search import Report, add_counterexamples, tasks
from .task import Task, machine, run
from .twin import Mutation
from .world import Reshaped, World

__all__ = ["cut", "explore_in", "merge"]

_PARTS = 8
_POLL_S = 0.2


def cut(world: World, task: Task, pieces: int) -> list[Task]:
    """A task as tasks that together are the same; those over states stay whole.

    The parts of a DPOR task hold for the points that ``world`` knows: have it searched over states before.
    """
    if task.search in {"random", "pct"}:
        return [replace(task, first=first, stride=pieces) for first in range(pieces)]
    if task.search != "dpor":
        return [task]
    while True:
        try:
            parts = split(machine(world, "sc"), pieces * _PARTS)
        except Reshaped:
            continue
        return [replace(task, part=part, points=tuple(sorted(world.points))) for part in parts]


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a task from those of its pieces. Of random runs, ends that two pieces saw count twice."""
    whole = replace(outcomes[0], findings=[], finals=set())
    for name in ("runs", "pruned", "distinct", "points", "code_runs"):
        setattr(whole, name, sum(getattr(outcome, name) for outcome in outcomes))
    whole.depth = max(outcome.depth for outcome in outcomes)
    whole.seconds = max(outcome.seconds for outcome in outcomes)
    whole.complete = all(outcome.complete for outcome in outcomes)
    whole.stopped = next((outcome.stopped for outcome in outcomes if outcome.stopped), "")
    for outcome in outcomes:
        whole.finals |= outcome.finals
        for finding in outcome.findings:
            whole.add(finding)
    return whole


def _work(task: Task, seconds: float | None, states: int | None, *, go_on: bool) -> Outcome:
    return run(task, Budget(seconds=seconds, states=states, go_on=go_on))


def explore_in(
    jobs: int,
    model: Model,
    *,
    seconds: float | None = None,
    states: int | None = None,
    go_on: bool = False,
    shrink_s: float = 20.0,
    mutations: Iterable[Mutation | tuple[str, str, str]] = (),
    stopped: Callable[[], bool] | None = None,
    **options: Any,
) -> Report:
    """As ``explore``, in ``jobs`` processes; ``options`` are those of ``tasks``. The model must be one that pickles."""
    mutations = tuple(Mutation(*each) for each in mutations)
    end = None if seconds is None else time.monotonic() + seconds
    report = Report(model)
    with (
        World(model, mutations) as world,
        concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
    ):
        whole = tasks(model, mutations=mutations, **options)
        found: dict[int, list[Outcome]] = {number: [] for number in range(len(whole))}
        running: dict[concurrent.futures.Future[Outcome], int] = {}

        def start(number: int, pieces: Iterable[Task]) -> None:
            left = None if end is None else max(end - time.monotonic(), 0.01)
            for piece in pieces:
                running[pool.submit(_work, piece, left, states, go_on=go_on)] = number

        if any(task.search == "dpor" for task in whole):  # parts hold for all the points there are
            run(replace(whole[0], search="random", last=200), Budget(seconds=5, go_on=True), world=world)
        for number, task in enumerate(whole):
            start(number, cut(world, task, jobs))
        while running:
            done, _ = concurrent.futures.wait(running, _POLL_S, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                number = running.pop(future)
                found[number].append(future.result())
            over = stopped is not None and stopped()
            if over or (not go_on and any(each.findings for all_of in found.values() for each in all_of)):
                for future in running:
                    future.cancel()
                running = {future: number for future, number in running.items() if not future.cancelled()}
                if over:
                    for number, outcomes in found.items():
                        task = whole[number]
                        outcomes.append(Outcome(model.name, task.search, task.memory, stopped="interrupted"))
        for number, outcomes in found.items():
            if any(outcome.stopped == "reshaped" for outcome in outcomes):  # more points than the parts were cut for
                outcomes[:] = [run(whole[number], Budget(seconds=seconds, states=states, go_on=go_on), world=world)]
            if outcomes:
                report.outcomes.append(merge(outcomes))
        add_counterexamples(report, world, shrink_s)
    return report
