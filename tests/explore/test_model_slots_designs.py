"""What the models of designs say: KVM today has a hole, an atomic batch none; each for the reason that is known."""

from __future__ import annotations

import pytest

from guestmem.explore.models import find, models
from guestmem.explore.outcome import Budget
from guestmem.explore.scene import Model
from guestmem.explore.search import explore, tasks
from guestmem.explore.task import run


@pytest.mark.parametrize("model", [m for m in models() if m.finds], ids=lambda m: m.name)
def test_a_design_that_is_known_to_be_wrong_is_found_to_be(model: Model) -> None:
    report = explore(model, weak=False, states=300_000, shrink_s=0)
    assert [found.finding.kind for found in report.counterexamples] == [model.finds]


def test_the_hole_of_today_is_told_with_its_two_swaps() -> None:
    report = explore(find("sequential"), weak=False, shrink_s=250)
    (found,) = report.counterexamples
    assert "met a hole" in found.finding.message
    assert "store release the active set of space 0: set 0 → set 1" in " ".join(found.story.split())
    assert "memslots/phases.py" in found.story


@pytest.mark.parametrize("name", ["pause-batch", "atomic-readonly"])
def test_weak_memory_shows_nothing_more(name: str) -> None:
    model = find(name)
    for task in tasks(model):
        if task.memory == "tso":
            outcome = run(task, Budget(states=60_000))
            assert not outcome.findings, outcome
            assert outcome.distinct > 10_000


def test_two_vcpus_agree_on_one_instant(seed: int) -> None:
    report = explore(find("atomic-2"), weak=False, random=300, seed=seed)
    assert report.clean, report.counterexamples[0].story
