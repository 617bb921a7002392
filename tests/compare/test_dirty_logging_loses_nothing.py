"""The scenario dirty-log: no way of logging loses a page, the broken one is caught, and figures say what was done."""

from __future__ import annotations

import pytest

from chance import until_met
from guestmem.compare.dirty_log import DESIGNS, compare_dirty_log, find_ways
from guestmem.compare.dirty_log_result import PHASES, DirtyLogComparison
from guestmem.errors import UsageError

# The limit: a try has two runs of all ways, and a busy machine may need several.
pytestmark = [pytest.mark.compiled_only, pytest.mark.timeout(900)]

MEMORY = 8 << 20
PAGES, BLOCKS = MEMORY >> 12, MEMORY >> 21


@pytest.fixture(scope="module", params=["x86", "arm64"])
def comparison(request: pytest.FixtureRequest) -> DirtyLogComparison:
    """All designs, two vCPUs, two runs."""

    def strong(_: int) -> DirtyLogComparison | None:
        made = compare_dirty_log(vcpus=(2,), memory=MEMORY, iterations=2, repeat=2, arch=request.param)
        return made if made.strong_enough and all(row.live_writes for row in made.rows) else None

    return until_met(strong, "a load strong enough to catch the broken design, and writes in every row")


def test_nothing_is_lost_and_the_broken_design_is_caught(comparison: DirtyLogComparison) -> None:
    assert [row.design for row in comparison.rows] == [way.name for way in DESIGNS]
    for row in comparison.rows:
        assert (row.lost > 0) == row.broken == row.caught, row.design
        assert row.written >= 2 * 2 * PAGES * (not row.broken)
        assert row.live_writes > 0
        assert row.live_logs == 2 * 11
        if not row.broken:
            assert row.marked == row.named, "every mark was taken once"
    assert comparison.strong_enough
    assert not comparison.interrupted


def test_figures_say_what_each_design_does(comparison: DirtyLogComparison) -> None:
    roots = min(row.table_pages["before"] for row in comparison.rows)
    for row in comparison.rows:
        begin, _, end = row.design.partition("+")
        work = {phase: each.invalidations / row.repeats for phase, each in row.work.items()}
        faults = {phase: each.faults / row.repeats for phase, each in row.work.items()}
        pages = row.table_pages
        assert all(row.times[phase].count for phase in PHASES)
        assert row.times["dirty"].count == 4
        assert faults["dirty"] >= 2 * PAGES, "every page faults once an iteration"
        if row.broken:
            continue
        assert (work["enable"], work["dirty"]) == ((1, BLOCKS) if begin == "demand" else (1 + BLOCKS, 0))
        assert pages["enable"] == roots + BLOCKS * (begin == "split")
        assert pages["dirty"] == roots + BLOCKS
        assert work["disable"] == {"lazy": 0, "unmap": 1, "eager": BLOCKS, "bbm2": BLOCKS}[end]
        assert work["rebuild"] == {"lazy": BLOCKS}.get(end, 0)
        assert pages["disable"] == roots + BLOCKS * (end == "lazy")
        assert pages["rebuild"] == roots
        assert faults["rebuild"] == (BLOCKS if end in {"lazy", "unmap"} else 0)
        assert faults["after"] == work["after"] == 0


def test_json_has_every_figure(comparison: DirtyLogComparison) -> None:
    values = comparison.as_dict()
    assert values["scenario"] == "dirty-log"
    assert values["strong_enough"] is True
    assert set(values["rows"][0]["times"]) == set(PHASES)
    assert values["rows"][0]["times"]["dirty"]["median"] > 0
    assert set(values["designs"]) == {row["design"] for row in values["rows"]}


def test_a_stop_returns_what_was_measured() -> None:
    rows: list[str] = []
    result = compare_dirty_log(
        vcpus=(1, 2), memory=4 << 20, repeat=1, designs=["lazy"], stopped=lambda: len(rows) > 0, advanced=rows.append
    )
    assert result.interrupted
    assert [row.repeats for row in result.rows] == [1]


def test_designs_are_found_by_name_or_half() -> None:
    assert [way.name for way in find_ways(["split+lazy", "unmap"])] == ["demand+unmap", "split+lazy", "split+unmap"]
    assert [way.name for way in find_ways([])] == [way.name for way in DESIGNS if not way.broken]
    with pytest.raises(UsageError, match=r"'lasy' is not one of demand\+lazy"):
        find_ways(["lasy"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vcpus": (0,)}, "vcpus: 0"),
        ({"memory": (4 << 20) + 4096}, "multiple of 2 MiB"),
        ({"memory": 2 << 20}, "4 MiB..16 GiB"),
        ({"iterations": 0}, "iterations: 0"),
        ({"repeat": 0}, "repeat: 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compare_dirty_log(**options)  # type: ignore[arg-type] # that is the point
