"""A search on disk goes on from where it was stopped or killed, and comes to the same result as one in one go."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guestmem.errors import UsageError
from guestmem.explore.models import find
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.search import explore, tasks
from guestmem.explore.store import Store
from guestmem.explore.task import run
from guestmem.explore.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAM = """
import json, os, signal, sqlite3
from guestmem.explore.models import find
from guestmem.explore.search import explore

def asked():
    with sqlite3.connect({file!r}) as db:
        saved = db.execute("SELECT outcome FROM searches").fetchone()
        (chunks,) = db.execute("SELECT count(*) FROM chunks").fetchone()
    if saved and chunks >= 2 and json.loads(saved[0])["distinct"] >= 20_000:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

explore(find("atomic"), weak=False, resume={file!r}, checkpoint_s=0.0, stopped=asked)
"""
"""Killed by itself, so that it is in the middle of its search, however fast or slow it and this process are."""


def counts(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.runs, outcome.distinct, outcome.points, outcome.pruned, outcome.complete, outcome.finals


@pytest.mark.parametrize(
    "search", ["states sc", "dpor sc", "states tso", "states relaxed", "states stale", "random tso"]
)
def test_stopped_again_and_again_it_comes_to_the_same(search: str, tmp_path: Path) -> None:
    kind, memory = search.split()
    model = find("flush")
    random = 300 if kind == "random" else None
    (task,) = [t for t in tasks(model, random=random) if (t.search, t.memory) == (kind, memory)]
    with World(model) as world:
        whole = run(task, Budget(), world=world)
    pieces = 0
    while True:
        with World(model) as world, Store(tmp_path / "search", "stamp") as store:
            asked = iter([*[False] * (6 if kind == "states" else 2), True])
            outcome = run(task, Budget(stopped=asked.__next__), world=world, store=store)
        pieces += 1
        if outcome.complete:
            break
        assert outcome.stopped == "interrupted"
    assert pieces > 1
    assert counts(outcome) == counts(whole)
    assert outcome.depth == whole.depth


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "search"
    process = subprocess.run([sys.executable, "-c", PROGRAM.format(file=str(file))], check=False)
    assert process.returncode == -signal.SIGKILL, "it was killed before its end"
    model = find("atomic")
    saved = _outcome_states(file)
    assert saved > 0
    seen: list[int] = []
    report = explore(
        model,
        weak=False,
        resume=file,
        states=saved + 1_000,
        progress=lambda outcome: seen.append(outcome.distinct),
        stopped=lambda: bool(seen) and (seen[-1] > saved or not seen[-1]),  # nor does the next search begin
    )
    states = report.outcomes[0]
    assert states.distinct >= saved, "it did not begin again"
    assert states.stopped in {"states", "interrupted"}
    assert not states.findings


def _outcome_states(file: Path) -> int:
    import json

    with contextlib.closing(sqlite3.connect(file)) as db:
        (text,) = db.execute("SELECT outcome FROM searches").fetchone()
    return int(json.loads(text)["distinct"])


def test_findings_are_kept(tmp_path: Path) -> None:
    mutations = [
        ("rcu/srcu.py", "    return srcu_wait(srcu, base, readers, srcu_start(srcu, base))", "    return u64(0)")
    ]
    first = explore(find("srcu"), mutations=mutations, resume=tmp_path / "s")
    again = explore(find("srcu"), mutations=mutations, resume=tmp_path / "s")
    assert [c.schedule for c in first.counterexamples] == [c.schedule for c in again.counterexamples]
    assert first.outcomes[0].points == again.outcomes[0].points


def test_another_search_is_refused(tmp_path: Path) -> None:
    explore(find("srcu"), weak=False, resume=tmp_path / "s")
    with pytest.raises(UsageError, match="was begun with other sources, models or options"):
        explore(find("pause"), weak=False, resume=tmp_path / "s")


def test_a_file_that_is_no_search_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_text("hello " * 100)
    with pytest.raises(UsageError, match="not a search on disk"):
        explore(find("srcu"), weak=False, resume=file)
    assert file.read_text().startswith("hello")
