"""A second process that looks at some of the transactions changes nothing of a report, wherever they are divided."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import renderings
from guestmem import traces
from guestmem.check import check, report
from guestmem.errors import TraceError
from guestmem.traces.second_process import SecondProcess, cores
from true_histories import simulate

if TYPE_CHECKING:
    import random

    from guestmem.check import Report

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [*(ROOT / "examples" / "traces").glob("*.*"), *(ROOT / "tests" / "traces" / "cases").glob("irqchip*.strace")]
)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def divided(timeline: traces.Timeline, cut: int, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The report of two processes, of which the second has the transactions from ``cut`` on."""
    monkeypatch.setattr(report, "MANY", 0)
    monkeypatch.setattr(report, "OWN_SHARE", (cut + 0.5) / len(timeline.transactions))
    return check(timeline, jobs=2)


def same(timeline: traces.Timeline, monkeypatch: pytest.MonkeyPatch, cuts: list[int]) -> int:
    alone = check(timeline, jobs=1)
    for cut in cuts:
        found = divided(timeline, cut, monkeypatch)
        assert found.as_dict() == alone.as_dict(), cut
        assert (found.verdicts, found.longest, repr(found)) == (alone.verdicts, alone.longest, repr(alone))
        assert list(found.holes) == list(alone.holes)
    return len(alone.holes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_of_recordings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        timeline = traces.read(path)
    except TraceError:  # run state only
        return
    count = len(timeline.transactions)
    same(timeline, monkeypatch, sorted({0, 1, count // 3, count // 2, count - 1} & set(range(count))))


def test_at_every_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Of made-up histories in one file, with holes of each verdict, and frames that come back late."""
    holes = 0
    for form in (renderings.strace, renderings.qemu_kvm_log, renderings.bpftrace):
        for _ in range(4):
            path = tmp_path / "trace"
            path.write_text(form(simulate(rng), rng))
            try:
                timeline = traces.read(path)
            except TraceError:
                continue
            holes += same(timeline, monkeypatch, list(range(len(timeline.transactions))))
    assert holes >= 5


def test_a_second_process_that_fails_leaves_the_work_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = traces.read(ROOT / "examples" / "traces" / "pc-seabios-smp2.log")
    alone = check(timeline, jobs=1)
    ours, look = os.getpid(), report._look_from

    def dies(*arguments: object) -> object:
        if os.getpid() != ours:
            os._exit(9)
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(report, "_look_from", dies)
    assert divided(timeline, 2, monkeypatch) == alone


def test_what_it_returns_comes_back_and_it_ends() -> None:
    ours = os.getpid()
    child = SecondProcess(lambda: (os.getpid(), list(range(100_000))))
    pid, numbers = child.result()
    assert pid != ours
    assert numbers == list(range(100_000))
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_beside_other_threads_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    started, done = threading.Event(), threading.Event()

    def waits() -> None:
        started.set()
        done.wait()

    thread = threading.Thread(target=waits)
    thread.start()
    started.wait()
    assert cores() == 1
    done.set()
    thread.join()
