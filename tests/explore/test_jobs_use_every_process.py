"""`--jobs N` searches in N processes, and comes to the counts and ends of a search in one."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from guestmem.explore.models import find, models
from guestmem.explore.outcome import Outcome
from guestmem.explore.parallel import explore_in
from guestmem.explore.search import explore


def counts(outcome: Outcome) -> tuple[object, ...]:
    return outcome.search, outcome.memory, outcome.runs, outcome.distinct, outcome.points, outcome.depth, outcome.finals


def test_every_model_can_be_handed_to_a_process() -> None:
    for model in models():
        assert pickle.loads(pickle.dumps(model)) == model


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"random": 600}, {"pct": 3, "runs": 300}], ids=["random", "pct"])
def test_random_runs_are_shared_out(options: dict[str, Any]) -> None:
    alone = explore(find("pause-4"), weak=False, **options)
    report = explore_in(2, find("pause-4"), weak=False, **options)
    assert [counts(outcome) for outcome in report.outcomes] == [counts(outcome) for outcome in alone.outcomes]
    assert "2 of 2 parts, by 2 processes" in report.outcomes[0].note


@pytest.mark.slow
def test_exhaustive_searches_come_to_the_same() -> None:
    alone, report = explore(find("flush")), explore_in(2, find("flush"))
    assert report.complete
    assert report.agree
    for one, other in zip(alone.outcomes, report.outcomes, strict=True):
        assert one.finals == other.finals
        if one.search == "dpor":
            assert one.runs - one.pruned == other.runs - other.pruned
            assert "16 of 16 parts" in other.note
        else:
            assert counts(one) == counts(other)


@pytest.mark.slow
def test_what_was_not_searched_is_not_called_complete() -> None:
    broken = [("rcu/srcu.py", "    return srcu_wait(srcu, base, readers, srcu_start(srcu, base))", "    return u64(0)")]
    report = explore_in(2, find("srcu"), mutations=broken)
    assert not report.clean
    assert not report.complete


@pytest.mark.slow
def test_time_is_for_all_parts_together() -> None:
    report = explore_in(2, find("flush-2"), seconds=1.0)
    assert {outcome.stopped for outcome in report.outcomes} >= {"time"}
    assert max(outcome.seconds for outcome in report.outcomes) < 200  # as long as a busy machine may take to start them
