"""What a row reports is what happened: counting at the end finds planted losses, and zeros come with attempts."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestmem.compare import Comparison, Row, Spread, compare, counters
from guestmem.compare.plan import Plan, Step, plan
from guestmem.compare.replay import replay
from guestmem.compiled import INTERPRETED
from guestmem.designs import find
from guestmem.engines import Access, VcpuCounts
from guestmem.engines.soft import SoftEngine
from guestmem.report.design_tables import verdict
from guestmem.traces import read
from guestmem.traces.scenes import scene_lines

TRACE = Path(__file__).parents[2] / "examples" / "traces" / "pc-seabios-smp2.log"
REPEAT = 1 if INTERPRETED else 3


@pytest.fixture
def steps() -> Iterator[Plan]:
    made = plan(read(TRACE))
    yield made
    made.close()


def row_of(steps: Plan, design: str) -> Row:
    return replay(steps, find(design), SoftEngine(2), access=Access(), repeat=REPEAT, interval_s=0.001)


def test_a_row_knows_its_attempts_and_its_work(steps: Plan) -> None:
    row = row_of(steps, "pause")
    assert row.replays == REPEAT
    assert row.transactions == REPEAT * 11
    assert row.update_ns.count == row.transactions
    assert row.trace_ns.count == row.replays
    assert row.counts.pauses == row.transactions
    assert row.accesses > 0
    assert row.failures == 0
    assert row.vcpu_stall_median_ns <= row.vcpu_stall_p99_ns <= row.vcpu_stall_worst_ns
    # 35 changes: 16 deletes with two swaps, 19 creates with one.
    deletes = sum(change.deletes for step in steps.steps for change in step.changes)
    assert row.counts.swaps == REPEAT * (35 + deletes)
    assert row.counts.srcu_waits == row.counts.swaps


def test_a_lost_write_is_counted(steps: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that claims one write more than memory holds."""
    real = SoftEngine.vcpu_counts

    def claims_more(self: SoftEngine) -> list[VcpuCounts]:
        counts = real(self)
        counts[0]["writes"] += 1
        return counts

    monkeypatch.setattr(SoftEngine, "vcpu_counts", claims_more)
    row = row_of(steps, "pause")
    assert row.lost == 1
    assert row.caught


def test_a_write_to_memory_that_was_taken_away_is_counted(steps: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device, say, that still writes to the old memory after the update has returned."""
    real = counters.Counters.step_ended
    planted: list[int] = []

    def writes_late(self: counters.Counters, step: Step) -> None:
        real(self, step)
        if step.words_that_end and not planted:
            planted.append(step.words_that_end[0])
            ctypes.c_uint64.from_address(planted[0]).value += 3

    monkeypatch.setattr(counters.Counters, "step_ended", writes_late)
    row = row_of(steps, "pause")
    assert planted
    assert row.wrong == 3
    assert row.caught


def test_memory_that_came_back_is_not_wrong_memory(tmp_path: Path) -> None:
    """A BAR that is moved over where it was: what comes back is touched at other pages than what went."""
    trace = tmp_path / "bar.log"
    with trace.open("w") as stream:
        stream.writelines(f"{line}\n" for line in scene_lines("bar", steps=100, seed=1))
    made = plan(read(trace))
    try:
        ended: set[int] = set()
        come_back = 0
        for step in made.steps:
            may = {
                word
                for target in step.load.targets
                for word, readonly in ((target.old, target.old_readonly), (target.new, target.new_readonly))
                if word and not readonly
            }
            come_back += len(ended & may - {target.new for target in step.load.targets})
            ended -= set(step.words_that_begin)
            assert not ended & may, "a word that vCPUs may write counts as memory that was taken away"
            ended |= set(step.words_that_end)
        assert come_back, "nothing came back, so nothing was shown"
    finally:
        made.close()


def test_what_a_design_refuses_is_said_and_applied_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from guestmem.engines.soft import at_once, update

    for module in (at_once, update):
        monkeypatch.setattr(module, "ENTRIES_MAX", 1)
    result = compare(read(TRACE), vcpus=[1], designs=["atomic"], repeat=1, interval_ms=0.5)
    atomic = result.rows[0]
    assert atomic.refusals
    assert "entries; 1 are allowed" in atomic.refusals[0]
    assert "lines 3-7" in atomic.refusals[0]
    assert atomic.replays == 1


def test_stopping_keeps_what_was_measured() -> None:
    asked = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 100

    result = compare(read(TRACE), vcpus=[1], designs=["pause", "atomic"], repeat=50, interval_ms=0.1, stopped=stopped)
    assert result.interrupted
    assert result.rows
    assert 0 < result.rows[-1].transactions < 50 * 11
    assert not result.strong_enough


def test_spread_is_median_mean_and_deviation() -> None:
    assert Spread.of([]) == Spread(0.0, 0.0, 0.0, 0)
    spread = Spread.of([1.0, 2.0, 3.0, 10.0])
    assert (spread.median, spread.mean, spread.count) == (2.5, 4.0, 4)
    assert spread.deviation == pytest.approx(12.5**0.5)


def test_a_run_that_catches_no_broken_design_is_weak() -> None:
    result = Comparison("x", "soft", "x86", 1, 1, 2.0, 2, 1, 1)
    assert not result.strong_enough
    result.rows.append(Row("atomic_unacknowledged", 1, 2, broken=True))
    assert not result.strong_enough
    result.rows[0].stale = 1
    assert result.strong_enough
    assert result.as_dict()["strong_enough"] is True


def test_the_verdict_says_where_the_broken_design_got_away() -> None:
    result = Comparison("x", "soft", "x86", 1, 1, 2.0, 2, 1, 1)
    result.rows += [Row("atomic_unacknowledged", vcpus, 2, broken=True, wrong=vcpus // 4) for vcpus in (1, 4, 8)]
    assert verdict(result) == (
        "load: strong enough (atomic_unacknowledged was caught at 4, 8 vCPUs); not at 1 vCPU: zeros there mean little"
    )
    del result.rows[0]
    assert verdict(result) == "load: strong enough (atomic_unacknowledged was caught at 4, 8 vCPUs)"
