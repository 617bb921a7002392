"""A search over states in several threads has the states, transitions, levels, ends and findings of one alone."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from explore_programs import model, program
from guestmem.explore import abreast_states, parallel
from guestmem.explore.abreast_states import AbreastStates
from guestmem.explore.finding import state_after
from guestmem.explore.judge import Judge
from guestmem.explore.machine import Machine
from guestmem.explore.models import find
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.scene import Model
from guestmem.explore.states import States
from guestmem.explore.task import MEMORIES, Task, machine, run
from guestmem.explore.world import World
from slices import sliced

SEED, PROGRAMS, MOST = 7, sliced(24, 80), 5_000
MODELS = [
    *(("srcu", memory) for memory in MEMORIES),
    ("flush", "tso"),
    ("update-lock", "relaxed"),
    ("sequential", "sc"),
]


def counted(outcome: Outcome) -> tuple[Any, ...]:
    keys = {finding.key for finding in outcome.findings}
    return outcome.distinct, outcome.points, outcome.depth, outcome.finals, keys, outcome.complete, outcome.loops


def alone(its: Machine) -> Outcome:
    return States(its, Outcome("", "states", its.name)).run(Budget(go_on=True, states=MOST * 10))


def together(its: Machine, threads: int = 3) -> AbreastStates:
    """With no level too small for threads."""
    search = AbreastStates(its, Outcome("", "states", its.name), threads=threads, few=0)
    search.run(Budget(go_on=True, states=MOST * 10))
    return search


def sound(search: AbreastStates) -> None:
    """No state is there twice, each is a move from its parent, and what was found is found by its schedule."""
    rows = search._states.data[: search.count * search.width].reshape(-1, search.width)
    assert len(np.unique(rows, axis=0)) == search.count
    for index in range(1, search.count, max(1, search.count // 50)):
        assert state_after(search.machine, search.path(index)) == search.state(index)
    for finding in search.outcome.findings:
        state = state_after(search.machine, finding.moves)
        if finding.kind not in {"livelock", "deadlock"} and search.judge.arrived(state) is None:
            assert search.judge.ended(state) is not None


def test_random_programs() -> None:
    rng = random.Random(SEED)
    abreast = 0
    for number in range(PROGRAMS):
        memory = MEMORIES[number % len(MEMORIES)]
        threads = program(rng, longest=3 if memory == "stale" else 5)
        with World(model(threads, forgetful=number % 4 > 0, spurious=number % 3 % 2)) as world:
            world.points.update(range(len(world.places)))
            one = alone(machine(world, memory, merged=True))
            if one.distinct > MOST:
                continue
            search = together(machine(world, memory, merged=True))
            assert counted(search.outcome) == counted(one), f"seed {SEED}, program {number}, {memory}: {threads}"
            sound(search)
            abreast += one.distinct
    assert abreast > 1_000


@pytest.mark.parametrize(("name", "memory"), MODELS)
def test_models(name: str, memory: str) -> None:
    its = find(name)
    with World(its) as world:
        run(Task(its, "states", memory), Budget(go_on=True), world=world)  # finds the shared words
        one = alone(machine(world, memory, merged=True))
        search = together(machine(world, memory, merged=True))
    assert one.distinct > 0
    assert counted(search.outcome) == counted(one)
    sound(search)


def test_a_level_is_expanded_by_threads_and_some_states_are_put_off() -> None:
    its = find("flush")
    with World(its) as world:
        run(Task(its, "states"), Budget(), world=world)
        search = together(machine(world, "sc", merged=True))
    assert search.put_off > 0
    assert search.shared > 0


class HoldsArguments(ThreadPoolExecutor):
    """As a thread does that has set its result, and has not gone on yet."""

    def submit(self, *args: Any, **named: Any) -> Any:
        self.held = [*getattr(self, "held", ()), args]
        return super().submit(*args, **named)


def test_arrays_grow_whatever_threads_still_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abreast_states, "ThreadPoolExecutor", HoldsArguments)
    its = find("flush")
    with World(its) as world:
        run(Task(its, "states"), Budget(), world=world)
        search = together(machine(world, "sc", merged=True))
    assert search.count > 1024, "nothing had to grow"


def test_what_is_found_first_has_a_schedule_that_leads_there() -> None:
    its: Model = find("sequential")
    found = run(Task(its, "states", threads=2), Budget()).findings[0]
    with World(its) as world:
        again_its = machine(world, "sc", found.points)
        again = Judge(again_its).arrived(state_after(again_its, found.moves))
        assert again is not None
        assert again.key == found.key


@pytest.mark.parametrize(
    ("jobs", "cores", "searches", "threads"), [(8, 2, 1, 2), (8, 8, 3, 2), (8, 2, 3, 1), (2, 8, 1, 2)]
)
def test_no_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, jobs: int, cores: int, searches: int, threads: int
) -> None:
    given: list[Task] = []

    def hand_out(_world: World, tasks: list[Task], *_rest: Any, **_options: Any) -> list[Outcome]:
        given.extend(tasks)
        return []

    monkeypatch.setattr(parallel, "hand_out", hand_out)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    parallel.explore_in(jobs, find("production-pause"), weak=searches > 1)
    assert [task.threads for task in given] == [threads] * searches
