"""Random runs: what they find is told, even by those that only look for shared words; PCT claims what it may."""

from __future__ import annotations

from typing import Any

import pytest

from guestmem.explore.outcome import Budget
from guestmem.explore.scene import Model, Scene
from guestmem.explore.search import explore
from guestmem.explore.task import Task, run

FOUND = "the other is at 1"


def late_point(scene: Scene) -> None:
    """The last thread finds a second one going on, or fails; a third word is shared only if nobody fails."""
    atomics, words = scene.room("atomics"), scene.words("w", 3)

    def first() -> None:
        for turn in range(8):
            atomics.store_release(words, 0, turn)
        atomics.load_acquire(words, 2)

    def second() -> None:
        for _ in range(2):
            atomics.load_acquire(words, 0)
        assert atomics.load_acquire(words, 0) < 1, FOUND
        atomics.store_release(words, 2, 1)

    scene.thread("first", first)
    scene.thread("second", second)


def uneven(scene: Scene) -> None:
    """Far longer if one thread comes last, which a walk by chance hardly ever does, and PCT often."""
    atomics, words = scene.room("atomics"), scene.words("w", 2)

    def first() -> None:
        for _ in range(20):
            atomics.fetch_add(words, 0, 1)

    def second() -> None:
        if atomics.load_acquire(words, 0) == 20:
            for _ in range(40):
                atomics.fetch_add(words, 0, 1)

    scene.thread("first", first)
    scene.thread("second", second)


def test_what_the_runs_that_look_for_points_find() -> None:
    outcome = run(Task(Model("late", "", "", late_point), "states"), Budget(go_on=True, states=1))
    assert not outcome.complete
    assert [finding.message.partition(" assert ")[0] for finding in outcome.findings] == [FOUND]
    report = explore(Model("late", "", "", late_point), states=1, weak=False)
    assert report.counterexamples[0].finding.message.startswith(FOUND)
    assert "second" in report.counterexamples[0].story


def test_what_runs_found_before_a_word_became_a_point() -> None:
    outcome = run(Task(Model("late", "", "", late_point), "random", last=1), Budget(go_on=True))
    assert outcome.runs == 1
    whole = run(Task(Model("late", "", "", late_point), "random", last=300), Budget(go_on=True))
    assert [finding.message.partition(" assert ")[0] for finding in whole.findings] == [FOUND]


@pytest.mark.parametrize(("build", "claims"), [(uneven, False), (late_point, True)])
def test_pct_claims_a_probability_only_for_runs_of_that_length(build: Any, claims: bool) -> None:
    task = Task(Model("length", "", "", build), "pct", depth=3 if claims else 1, last=50)
    outcome = run(task, Budget(go_on=True))
    if claims:
        assert "probability at least" in outcome.note
        assert f"{outcome.depth} points" in outcome.note or outcome.depth < int(outcome.note.split()[-2])
    else:
        assert outcome.note.startswith("PCT: no probability for a bug of depth 1: a run had ")
