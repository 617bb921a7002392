"""Over many replays of a real boot: sequential shows holes, pauses and ``atomic`` none, the broken design is caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from chance import until_met
from guestmem.compare import Comparison, Row, compare
from guestmem.designs import BROKEN
from guestmem.engines import Access
from guestmem.traces import Timeline, read
from slices import sliced

# The limit: a dozen runs in a row, on a machine that has much else to do.
pytestmark = [pytest.mark.slow, pytest.mark.compiled_only, pytest.mark.timeout(1200)]

TRACE = Path(__file__).parents[2] / "examples" / "traces" / "pc-seabios-smp2.log"
REPLAYS = sliced(30, 200)
STALLS = sliced(300, 2_000)
MOST_ROUNDS = 12
"""Of that many replays each: on a loaded machine fewer accesses run into a stall."""
MOST_WEAK = 4
RIGHT = ("pause", "pause_if_overlap")


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return read(TRACE)


def replays(timeline: Timeline, seed: int, *designs: str, access: Access | None = None) -> Comparison:
    return compare(timeline, vcpus=[2], designs=designs, repeat=REPLAYS, seed=seed, interval_ms=0.2, access=access)


@pytest.fixture(scope="module")
def rows(timeline: Timeline) -> dict[str, Row]:
    """All designs but atomic, and the broken one, in one run; a run whose load was too weak shows nothing."""

    def strong(number: int) -> dict[str, Row]:
        found = replays(timeline, 1 + number, "sequential", *RIGHT)
        rows = {row.design: row for row in found.rows}
        today = rows["sequential"]
        met = today.holes and today.killed and all(rows[name].inside_changed for name in RIGHT)
        return rows if found.strong_enough and met else {}

    return until_met(strong, "a load strong enough to show anything")


@pytest.fixture(scope="module")
def atomic(timeline: Timeline) -> list[Comparison]:
    """Runs of atomic and the broken design, until vCPUs ran into enough stalls in runs whose load was strong enough."""
    runs: list[Comparison] = []
    met = instants = 0
    while (met < STALLS or not instants) and len(runs) < MOST_ROUNDS:
        runs.append(replays(timeline, len(runs), "atomic", access=Access(changed=0.95)))
        met = sum(flux_stalls(run) for run in runs if run.strong_enough)
        instants = sum(run.rows[0].instants for run in runs)
    if met < STALLS or not instants:
        seen = f"vCPUs met {met} stalls and {instants} instants in {len(runs)} runs on this machine"
        pytest.skip(f"{seen}: too few to show anything")
    return runs


def flux_stalls(run: Comparison) -> int:
    """How often vCPUs waited for a range in flux under atomic."""
    return sum(counts["flux_stalls"] for row in run.rows if row.design == "atomic" for counts in row.vcpu_counts)


def test_sequential_shows_holes_and_killed_fetches(rows: dict[str, Row]) -> None:
    row = rows["sequential"]
    assert row.replays == REPLAYS
    assert row.holes > 0
    assert row.killed > 0
    assert row.wrong == row.stale == row.strange == 0


@pytest.mark.parametrize("design", RIGHT)
def test_pauses_show_none(rows: dict[str, Row], design: str) -> None:
    row = rows[design]
    assert (row.replays, row.refusals) == (REPLAYS, [])
    assert row.inside_changed > 0
    assert (row.failures, row.torn) == (0, 0)


def test_atomic_shows_none_and_its_stalls_were_met(atomic: list[Comparison]) -> None:
    for run in atomic:
        row = run.rows[0]
        assert (row.design, row.replays, row.refusals) == ("atomic", REPLAYS, [])
        assert (row.holes, row.killed, row.lost, row.wrong, row.stale, row.refused, row.strange) == (0,) * 7
        assert row.failures == 0
    assert sum(flux_stalls(run) for run in atomic if run.strong_enough) >= STALLS
    assert sum(run.rows[0].inside_changed for run in atomic) > 0


def test_atomic_has_one_instant(atomic: list[Comparison]) -> None:
    """The latest start of an access that saw old is before the earliest end of one that saw new, on one clock."""
    assert sum(run.rows[0].instants for run in atomic) > 0
    assert sum(run.rows[0].torn for run in atomic) == 0


def test_the_broken_design_is_caught(rows: dict[str, Row], atomic: list[Comparison]) -> None:
    """In the very runs that show the others clean; what a run without says is not counted above."""
    assert rows[BROKEN].caught
    for run in atomic:
        assert [row.design for row in run.rows] == ["atomic", BROKEN]
        assert run.strong_enough == run.rows[1].caught
    assert any(run.strong_enough for run in atomic)
