"""A schedule is a list of choices: the same list is the same run, in this process and in another."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import pytest

from guestmem.explore.models import find
from guestmem.explore.outcome import Budget
from guestmem.explore.search import explore
from guestmem.explore.story import whole_story
from guestmem.explore.task import Task, machine, run
from guestmem.explore.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAM = """
import sys
sys.path[:0] = {path!r}
from test_same_schedule_same_run import fingerprint
for model, memory in {cases!r}:
    print(fingerprint(model, memory, {seed}))
"""


def fingerprint(model: str, memory: str, seed: int) -> str:
    """A hash of what a few random runs do, word by word and line by line."""
    from guestmem.explore.sampling import Sampling

    digest = hashlib.sha256()
    with World(find(model)) as world:
        world.points.update(range(len(world.places)))
        task = Task(world.model, "random", memory, seed=seed, last=30)
        outcome = run(task, Budget(go_on=True), world=world)
        sampling = Sampling(lambda: machine(world, memory), outcome, seed=seed, last=0)
        for number in range(5):
            import random

            _, moves = sampling._walk(random.Random(number))
            digest.update(whole_story(sampling.machine, moves).encode())
        digest.update(repr((outcome.points, outcome.distinct, sorted(world.points))).encode())
    return digest.hexdigest()


def test_in_another_process(seed: int) -> None:
    cases = [("srcu", "sc"), ("pause-4", "tso"), ("memslots", "relaxed")]
    here = [fingerprint(model, memory, seed) for model, memory in cases]
    assert here == [fingerprint(model, memory, seed) for model, memory in cases]
    path = [p for p in sys.path if p] + [__file__.rpartition("/")[0]]
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(path=path, cases=cases, seed=seed)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert result.stdout.split() == here


def test_another_seed_is_another_run() -> None:
    assert fingerprint("srcu", "sc", 1) != fingerprint("pause", "sc", 1)


@pytest.mark.parametrize("options", [{}, {"random": 200}, {"pct": 3, "runs": 100}], ids=str)
def test_a_search_is_the_same_each_time(options: dict[str, Any]) -> None:
    def counts() -> list[tuple[object, ...]]:
        report = explore(find("flush"), weak=False, **options)
        return [(o.runs, o.distinct, o.points, o.pruned, o.depth, sorted(o.finals)) for o in report.outcomes]

    assert counts() == counts()


def test_random_runs_in_strides_are_the_same_runs() -> None:
    with World(find("pause")) as world:
        whole = run(Task(world.model, "random", last=60), Budget(), world=world)
        parts = [run(Task(world.model, "random", first=k, stride=3, last=60), Budget(), world=world) for k in range(3)]
    assert sum(part.points for part in parts) == whole.points
