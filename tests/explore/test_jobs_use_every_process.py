"""`--jobs N` searches in N processes, and comes to the counts and ends of a search in one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from guestmem.explore.models import find, models
from guestmem.explore.outcome import Outcome
from guestmem.explore.own import all_of
from guestmem.explore.parallel import explore_in
from guestmem.explore.search import explore

MEETING = """
import multiprocessing, os, time
from pathlib import Path

from guestmem.explore import Model, Scene

HERE = Path(__file__).parent


def build(scene: Scene) -> None:
    if multiprocessing.parent_process() is not None:
        (HERE / f"{os.getpid()}.begun").touch()
        end = time.monotonic() + 250
        while len([*HERE.glob("*.begun")]) < 2:
            assert time.monotonic() < end, "no other process came"
            time.sleep(0.01)
    atomics, words = scene.room("atomics"), scene.words("w", 1)
    for number in range(2):
        scene.thread(f"t{number}", atomics.fetch_add, words, 0, 1)


MODELS = (Model("meeting", "two processes meet", "2 threads", build),)
"""


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
    assert "2 of 2 parts, by " in report.outcomes[0].note, "one process may be through with both before the other is up"


@pytest.mark.slow
def test_two_processes_are_at_work_at_once(tmp_path: Path) -> None:
    """Each part waits for another one to be begun, which only another process can do."""
    (tmp_path / "meeting.py").write_text(MEETING)
    (model,) = all_of(str(tmp_path / "meeting.py"))
    report = explore_in(2, model, weak=False, random=100)
    assert report.outcomes[0].note == "2 of 2 parts, by 2 processes"
    assert report.outcomes[0].runs == 100


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
    report = explore_in(2, find("flush-2"), seconds=0.01)  # of the seconds that it takes, however fast the machine is
    assert {outcome.stopped for outcome in report.outcomes} >= {"time"}
    assert max(outcome.seconds for outcome in report.outcomes) < 200  # as long as a busy machine may take to start them
