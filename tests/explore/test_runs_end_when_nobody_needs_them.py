"""A run that no search can let go on is ended: a suspended greenlet is never collected, nor is what it reaches."""

from __future__ import annotations

import gc
import weakref

import pytest

from guestmem.explore import tree
from guestmem.explore.models import find
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.states import States
from guestmem.explore.task import Task, machine, run
from guestmem.explore.world import World


@pytest.mark.parametrize("search", ["states", "dpor", "random"])
def test_a_world_that_was_searched_is_collected(search: str) -> None:
    model = find("srcu")
    with World(model) as world:
        outcome = run(Task(model, search, last=5), Budget(states=50, runs=5), world=world)
        assert outcome.points
        assert world._stopped, "some runs are stopped when a search ends"
    known = weakref.ref(world)
    del world
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("live", [1 << 14, 4])
def test_those_stopped_are_those_that_can_go_on(live: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_LIVE", live)
    with World(find("srcu")) as world:
        run(Task(find("srcu"), "states"), Budget(), world=world)  # finds the shared words
        for strand in [*world._stopped]:
            world.give_up(strand)
        its = machine(world, "sc", merged=True)
        outcome = States(its, Outcome("", "states", "sc")).run(Budget())
        assert outcome.complete
        assert world._stopped == {node.strand for node in its.tree.nodes if node.strand is not None}
        assert len(world._stopped) <= live
