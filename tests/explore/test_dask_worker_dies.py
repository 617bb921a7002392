"""`--dask`: parts go to a cluster's workers; one that is killed costs its parts only, and the result is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guestmem.cli import main
from guestmem.errors import GuestmemError, UsageError
from guestmem.explore.cluster import TRIES, _Cluster, explore_on
from guestmem.explore.handout import Limits, Standing, cut, merge
from guestmem.explore.models import find
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.search import explore, tasks
from guestmem.explore.task import run
from guestmem.explore.world import World

pytest.importorskip("distributed", reason="distributed is not installed: pip install 'guestmem[dask]'")

# distributed's client closes its sockets in its own event loop, some after the last reference is gone.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

START_S = 240
MODEL = "pause-4"
RUNS = 1000
BROKEN = [("rcu/srcu.py", "    return srcu_wait(srcu, base, readers, srcu_start(srcu, base))", "    return u64(0)")]


HELD = """
import time
from pathlib import Path

from guestmem.explore import cluster

if not hasattr(cluster, "not_held"):  # a worker may load this twice
    cluster.not_held = cluster.search_piece


def held(*arguments, **named):
    while not Path({killed!r}).exists():
        time.sleep(0.01)
    return cluster.not_held(*arguments, **named)


cluster.search_piece = held
"""
"""In each worker: a part that was begun is not searched before one of the workers was killed."""


def dask(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """As docs/explore.md starts them."""
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "dask", *arguments], stdout=out, stderr=out)


class Cluster:
    """A scheduler and two worker processes."""

    def __init__(self, folder: Path) -> None:
        file, self.killed = folder / "scheduler.json", folder / "killed"
        (folder / "held.py").write_text(HELD.format(killed=str(self.killed)))
        at = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.scheduler = dask("scheduler", *at, "--scheduler-file", str(file), log=folder / "scheduler")
        self.workers = [self.add(folder, number) for number in range(2)]
        deadline = time.monotonic() + START_S
        while not file.exists() or not file.stat().st_size:
            assert time.monotonic() < deadline, (folder / "scheduler").read_text()
            time.sleep(0.05)
        self.address: str = json.loads(file.read_text())["address"]

    @staticmethod
    def add(folder: Path, number: int) -> subprocess.Popen[bytes]:
        options = (
            "--scheduler-file",
            str(folder / "scheduler.json"),
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--preload",
            str(folder / "held.py"),
        )
        return dask("worker", *options, log=folder / f"worker{number}")

    def wait_for_workers(self, count: int) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=START_S)
            pids = client.run(os.getpid)
        by_pid = {process.pid: process for process in self.workers}
        self.by_address = {address: by_pid[pid] for address, pid in pids.items()}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    its = Cluster(tmp_path)
    try:
        its.wait_for_workers(2)
        yield its
    finally:
        for process in (*its.workers, its.scheduler):
            process.kill()
            process.wait()


def counts(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.search, outcome.runs, outcome.distinct, outcome.points, outcome.depth, outcome.shared


def test_a_killed_worker_costs_its_parts_only(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And more on the same cluster, which takes seconds to start."""
    seen: list[Standing] = []
    begun: list[str] = []
    listen = _Cluster._event

    def kill_one(pool: _Cluster, event: tuple[float, dict[str, Any]]) -> None:
        """As the second part begins: whoever has it, which is in it until this is done."""
        listen(pool, event)
        if "counts" not in event[1]:
            begun.append(event[1]["worker"])  # the scheduler adds it
            if len(begun) == 2:
                cluster.by_address[begun[-1]].kill()
                cluster.by_address[begun[-1]].wait()
                cluster.killed.touch()

    monkeypatch.setattr(_Cluster, "_event", kill_one)
    model = find(MODEL)
    (alone,) = explore(model, random=RUNS, weak=False).outcomes
    report = explore_on(cluster.address, model, random=RUNS, weak=False, progress=seen.append)
    (handed_out,) = report.outcomes
    assert [process.wait() for process in cluster.workers if process.poll() is not None] == [-signal.SIGKILL]
    assert max(standing.workers for standing in seen) == 2
    assert seen[-1].again >= 1, "what it had was handed out again"
    assert "handed out again" in handed_out.note
    assert handed_out.complete
    assert report.clean
    assert counts(handed_out) == counts(alone)
    assert handed_out.runs == RUNS
    assert handed_out.finals == alone.finals

    exhaustive_searches_are_the_same_too(cluster.address)
    findings_come_back(cluster.address)
    assert main(["explore", "srcu", "--no-weak", "--dask", cluster.address]) == 0
    out = capsys.readouterr().out
    assert "states and dpor came to the same ends" in out
    assert "parts, by 1 process" in out


def exhaustive_searches_are_the_same_too(address: str) -> None:
    model = find("flush")
    whole = explore(model, weak=False)
    report = explore_on(address, model, weak=False)
    assert report.clean
    assert report.complete
    assert report.agree
    for one, other in zip(whole.outcomes, report.outcomes, strict=True):
        assert (one.search, one.memory, one.finals) == (other.search, other.memory, other.finals)
        if one.search == "dpor":  # parts try every move where they were cut: more runs begin, as many end
            assert one.runs - one.pruned == other.runs - other.pruned
        else:
            assert counts(one) == counts(other)


def findings_come_back(address: str) -> None:
    model = find("srcu")
    whole = explore(model, mutations=BROKEN, weak=False, go_on=True, shrink_s=0)
    report = explore_on(address, model, mutations=BROKEN, weak=False, go_on=True, shrink_s=0)
    assert not whole.clean
    assert {c.finding.key for c in report.counterexamples} == {c.finding.key for c in whole.counterexamples}
    first = explore_on(address, model, mutations=BROKEN)
    assert first.counterexamples[0].story
    assert not first.complete, "it stopped at the first"


def test_parts_searched_one_by_one_are_the_whole() -> None:
    model = find("flush")
    with World(model) as world:
        (whole,) = [run(task, Budget(), world=world) for task in tasks(model, weak=False) if task.search == "dpor"]
        (task,) = [task for task in tasks(model, weak=False) if task.search == "dpor"]
        parts = merge([run(part, Budget(), world=world) for part in cut(world, task, 4)])
    assert parts.complete
    assert parts.finals == whole.finals
    assert parts.runs - parts.pruned == whole.runs - whole.pruned


def test_a_part_that_kills_its_workers_is_given_up_and_said() -> None:
    """The scheduler's verdict after its last try, without the cluster."""
    from distributed import KilledWorker

    pool = object.__new__(_Cluster)
    pool.address, pool._killed, pool._tries, pool._begun = "tcp://here", KilledWorker, {0: 1}, {0: 4}
    (task,) = tasks(find("srcu"), random=100, weak=False)
    pool._pieces = {0: (task, Limits())}
    future = SimpleNamespace(
        status="error", exception=lambda: KilledWorker("part", SimpleNamespace(address="tcp://gone"), 3)
    )
    back = pool._result(0, future)
    assert back is not None
    whole = merge([run(task, Budget()), back.outcome])
    assert (whole.complete, whole.stopped, whole.runs) == (False, "lost", 100)
    assert "given up after 4 tries: every worker that had it died" in whole.note


@pytest.mark.parametrize("status", ["finished", "lost", "cancelled"])
def test_a_result_that_is_lost_with_its_worker_is_worked_out_again(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was through with the part, and died before anybody had asked it for what came out."""
    pool, started = object.__new__(_Cluster), []
    (task,) = tasks(find("srcu"), random=100, weak=False)
    pool.address, pool._client, pool._pieces = "tcp://here", SimpleNamespace(status="running"), {0: (task, Limits())}
    pool._tries, pool._begun, pool._killed = {0: 1}, {}, ZeroDivisionError
    monkeypatch.setattr(pool, "_look", lambda: None)
    monkeypatch.setattr(pool, "start", lambda *piece: started.append(piece))

    def result(timeout: float) -> None:
        assert timeout
        raise CancelledError

    future = SimpleNamespace(status=status, result=result)
    assert pool._result(0, future) is None
    assert started == [(0, task, Limits())]
    pool._tries = {0: TRIES}
    given_up = pool._result(0, future)
    assert given_up is not None
    assert (
        given_up.outcome.note
        == "a part was given up after 3 tries: what it came to was lost with the worker that had it"
    )
    assert len(started) == 1
    pool._client.status = "closed"
    with pytest.raises(GuestmemError, match="the connection to the scheduler is lost"):
        pool._result(0, future)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", ""])
def test_an_address_where_nobody_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestmem.explore.cluster.CONNECT_S", 0.3)
    with pytest.raises(UsageError, match=r"^--dask .*: no Dask scheduler answers there[^\n]*$"):
        explore_on(address, find("srcu"))


NOBODY = """\
from guestmem.cli import main
from guestmem.explore import cluster
cluster.CONNECT_S = 0.3
raise SystemExit(main(["explore", "srcu", "--dask", "nope"]))
"""


def test_an_address_without_a_port_ends_in_one_line() -> None:
    """Also when the interpreter ends, and with it the client that was never connected."""
    done = subprocess.run([sys.executable, "-c", NOBODY], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
