"""The JSON of a comparison and its tables say the same, cell by cell, for both engines; null is where "-" is."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guestmem.compare import Comparison, Row, compare
from guestmem.engines.kvm import unusable
from guestmem.report.compare import print_comparison
from guestmem.traces import read
from guestmem.units import format_ns

pytestmark = pytest.mark.compiled_only
BOOT = Path(__file__).parents[2] / "examples" / "traces" / "pc-seabios-smp2.log"

Values = dict[str, Any]
Cell = Callable[[Values, float], str | None]


def plain(name: str) -> Cell:
    return lambda row, _: None if row[name] is None else str(row[name])


def median(name: str) -> Cell:
    return lambda row, _: format_ns(row[name]["median"])


def spread(name: str) -> Cell:
    return lambda row, _: f"{format_ns(row[name]['mean'])} ± {format_ns(row[name]['deviation'])}"


def stall(name: str) -> Cell:
    return lambda row, _: format_ns(row[name]) if row["vcpu_stalls"] else None


def each(name: str) -> Cell:
    return lambda row, replays: None if row["counts"][name] is None else f"{row['counts'][name] / replays:.0f}"


def lasted(name: str) -> Cell:
    return lambda row, replays: None if row["counts"][name] is None else format_ns(row["counts"][name] / replays)


def stale(row: Values, _: float) -> str | None:
    return (
        None
        if row["stale"] is None and not row["strange"]
        else str((row["stale"] or 0) + (row["refused"] or 0) + row["strange"])
    )


def torn(row: Values, _: float) -> str | None:
    return None if row["torn"] is None else f"{row['torn']} of {row['instants']}"


CELLS: dict[str, dict[str, Cell]] = {
    "What vCPUs saw": {
        "accesses inside": plain("inside"),
        "of these changed": plain("inside_changed"),
        "data in a hole": plain("holes"),
        "fetch kills": plain("killed"),
        "answered": plain("answered"),
        "writes lost": plain("lost"),
        "wrong memory": plain("wrong"),
        "stale": stale,
        "torn": torn,
        "one instant": plain("one_instant"),
    },
    "What it cost": {
        "update, median": median("update_ns"),
        "mean ± sd": spread("update_ns"),
        "trace, mean ± sd": spread("trace_ns"),
        "vCPU stalls": plain("vcpu_stalls"),
        "vCPU stall, median": stall("vcpu_stall_median_ns"),
        "99 %": stall("vcpu_stall_p99_ns"),
        "worst": stall("vcpu_stall_worst_ns"),
        "one kick, median": median("one_kick_ns"),
    },
    "What the updates did, a replay": {
        "swaps": each("swaps"),
        "SRCU waits": each("srcu_waits"),
        "kicks": each("kicks"),
        "flushes": each("flushes"),
        "pauses": each("pauses"),
        "ranges in flux": each("ranges_in_flux"),
        "zaps": each("zaps"),
        "refaults": lambda row, replays: None if row["refaults"] is None else f"{row['refaults'] / replays:.0f}",
        "table pages": plain("table_pages"),
        "slept": each("slept"),
        "lock": lasted("lock_ns"),
        "edit": lasted("edit_ns"),
        "requests": lasted("request_ns"),
        "slowest vCPU": lasted("acks_ns"),
        "readers": lasted("grace_ns"),
    },
}


def printed(comparison: Comparison) -> dict[str, list[dict[str, str]]]:
    """The tables as they are printed: by title, a dict a row."""
    stream = io.StringIO()
    print_comparison(comparison, stream=stream)
    lines = stream.getvalue().splitlines()
    found: dict[str, list[dict[str, str]]] = {}
    for title in CELLS:
        below = lines[lines.index(title) + 1 :]
        start = next(i for i, line in enumerate(below) if line.strip())
        names = re.split(r"  +", below[start].strip())
        rows = found[title] = []
        for line in below[start + 2 :]:
            cells = re.split(r"  +", line.strip())
            if len(cells) < len(names) - 1:
                if line.strip():
                    break
                continue
            rows.append(dict(zip(names[-len(cells) :], cells, strict=True)))
            if len(rows) == len(comparison.rows):
                break
    return found


def assert_same(comparison: Comparison) -> int:
    """Every cell of every table against the JSON; how many were compared."""
    figures = json.loads(json.dumps(comparison.as_dict()))
    compared = 0
    for title, rows in printed(comparison).items():
        assert len(rows) == len(figures["rows"])
        for shown, row in zip(rows, figures["rows"], strict=True):
            replays = max(1.0, row["transactions"] / figures["steps"])
            assert shown["vCPUs"].rstrip("*") == str(row["vcpus"])
            for name, cell in CELLS[title].items():
                assert shown[name] == (cell(row, replays) or "-"), (title, name, row["design"])
                compared += 1
            assert set(shown) <= {*CELLS[title], "design", "vCPUs"}, "a column that nothing holds against the JSON"
    return compared


@pytest.mark.parametrize(
    "engine",
    ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))],
)
def test_every_cell_is_in_the_json(engine: str) -> None:
    comparison = compare(read(BOOT), vcpus=(1, 2), designs=("pause",), repeat=2, interval_ms=0.2, engine=engine)
    assert assert_same(comparison) == len(comparison.rows) * sum(map(len, CELLS.values())) >= 4 * 32


@pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
def test_what_the_kernel_engine_measures_is_not_null() -> None:
    """What went wrong once: a field of the counts that is not measured took the row's field of that name with it."""
    row = compare(read(BOOT), vcpus=(1,), designs=("pause",), repeat=1, interval_ms=0.2, engine="kvm").as_dict()[
        "rows"
    ][0]
    assert row["one_kick_ns"]["count"] > 0
    assert row["vcpu_stalls"] is not None
    assert row["counts"]["ranges_in_flux"] is row["counts"]["request_ns"] is None
    assert [row[name] for name in ("refused", "refaults", "table_pages")] == [None] * 3
    assert row["stale"] is not None


def test_each_name_that_is_not_measured_is_a_field() -> None:
    from guestmem.engines.kvm.load_engine import KvmLoadEngine

    row = Row("x", 1, 1)
    for name in KvmLoadEngine.unmeasured:
        place, _, part = name.rpartition(".")
        assert hasattr(getattr(row, place) if place else row, part), name
    assert not {name for name in Row.__dataclass_fields__ if hasattr(row.counts, name)}, "one name, two meanings"
