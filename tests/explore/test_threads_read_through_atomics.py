"""What threads of models read of the scene's words they read by atomics: what stands in the words does not matter.

A copy that is taken past the atomics, as of a slot's record at once, shows what the words held before any thread ran,
or what a final property left there: such a model goes where production does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from guestmem.explore.models import models
from guestmem.explore.outcome import Outcome
from guestmem.explore.scene import Model, Scene
from guestmem.explore.search import explore
from guestmem.explore.view import View
from guestmem.explore.world import World
from slices import one_in

NONSENSE = 0xA5A5_0000_0000_5A5A
RUNS = 10


def hide(world: World) -> None:
    for place in world.places:
        place.region.words.cells[place.index] = NONSENSE


def show(world: World) -> None:
    for place, value in zip(world.places, world.initial, strict=True):
        place.region.words.cells[place.index] = value


@contextlib.contextmanager
def hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While threads run there is nonsense in the words; final properties find what is to be there."""
    made, ended = World.__init__, View.broken_in_the_end

    def init(self: World, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        hide(self)

    def broken_in_the_end(self: View, *arguments: Any, **named: Any) -> Any:
        world = self._world
        show(world)
        try:
            return ended(self, *arguments, **named)
        finally:
            hide(world)

    with monkeypatch.context() as patch:
        patch.setattr(World, "__init__", init)
        patch.setattr(View, "broken_in_the_end", broken_in_the_end)
        yield


def summary(outcome: Outcome) -> tuple[Any, ...]:
    found = [(each.kind, each.moves) for each in outcome.findings]
    return outcome.runs, outcome.points, outcome.distinct, outcome.finals, found


def runs(model: Model) -> tuple[Any, ...]:
    (outcome,) = explore(model, random=RUNS, weak=False, seed=7).outcomes
    return summary(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("model", one_in(8, models()), ids=lambda model: model.name)
def test_runs_are_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runs(model)
    with hidden(monkeypatch):
        assert runs(model) == whole


def peeks(scene: Scene) -> None:
    """A thread that looks at the words themselves."""
    words = scene.words("words", [1])

    def thread() -> int:
        seen: int = words.cells[0]
        return seen

    scene.thread("thread", thread)
    scene.final("it saw what was there", lambda view: view.result("thread") == 1)


def test_one_that_reads_past_them_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("peeks", "a thread reads words past the atomics", "1 thread", peeks)
    whole = runs(model)
    with hidden(monkeypatch):
        assert runs(model) != whole
