"""A run that is taken down where it stopped runs its `finally` clauses, but their operations reach no word."""

from __future__ import annotations

from typing import Any

import pytest

from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.scene import Model, Scene
from guestmem.explore.task import Task, run

STEPS = 2


def counted(scene: Scene) -> None:
    """Two threads that come and go, out again whatever happens; one that does not come to its end says so."""
    atomics, words = scene.room("atomics"), scene.words("w", 3)

    def body(me: int) -> None:
        ended = False
        try:
            for _ in range(STEPS):
                atomics.fetch_add(words, 0, 1)
                atomics.load_acquire(words, 0)
                atomics.fetch_add(words, 0, 2**64 - 1)
            ended = True
        finally:
            if not ended:
                atomics.store_release(words, 1 + me, 1)

    for me in range(2):
        scene.thread(f"t{me}", body, me)
    scene.final("both came to their end", lambda view: not view.word(words, 1) + view.word(words, 2))
    scene.final("both are out", lambda view: view.word(words, 0) == 0)


def searched(search: str) -> Outcome:
    return run(Task(Model("counted", "", "", counted), search), Budget(go_on=True))


@pytest.mark.parametrize("search", ["states", "dpor"])
def test_few_stopped_runs_are_as_good_as_many(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def summary(outcome: Outcome) -> tuple[Any, ...]:
        return outcome.complete, outcome.findings, outcome.distinct, outcome.runs, outcome.finals

    monkeypatch.setattr("guestmem.explore.tree._LIVE", 100_000)
    kept = searched(search)
    monkeypatch.setattr("guestmem.explore.tree._LIVE", 1)
    given_up = searched(search)
    assert kept.complete
    assert not kept.findings
    assert summary(given_up) == summary(kept)
    assert given_up.code_runs > kept.code_runs, "runs were given up, and their code ran again"
