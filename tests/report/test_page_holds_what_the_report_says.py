"""The page's data are the report's and the timeline's, nothing in a trace is markup, and the page is one small file."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from guestmem import traces
from guestmem.check import check
from guestmem.cli import main
from guestmem.report.page import data, page
from guestmem.traces.evidence import Stretch, Where

TRACES = Path(__file__).parents[2] / "examples" / "traces"
BOOT = TRACES / "pc-seabios-smp2.log"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u202e{{ 7 * 7 }}{% raw %}"


def embedded(html: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    result: dict[str, Any] = json.loads(found)
    return result


@pytest.mark.parametrize("name", ["pc-seabios-smp2.log", "q35-seabios-smp2.log", "pc-migration.log", "strace-pc.txt"])
def test_every_change_and_every_hole_is_there(name: str) -> None:
    timeline = traces.read(TRACES / name)
    report = check(timeline)
    found = embedded(page(report, timeline))
    changes = found["changes"]
    for i, each in enumerate(timeline.changes):
        assert changes["line"][i] == each.line
        assert changes["slot"][i] == each.change.slot
        assert (changes["gfn"][i], changes["pages"][i]) == (each.change.base_gfn, each.change.npages)
        assert changes["host"][i] << 12 == each.change.userspace_addr
        if each.time is not None and timeline.changes[0].time is not None:
            assert changes["ns"][i] == pytest.approx((each.time - timeline.changes[0].time) * 1e9, abs=500)
    holes = found["holes"]
    assert [holes["reasons"][each] for each in holes["reason"]] == [hole.reason for hole in report.holes]
    assert holes["verdict"] == [hole.verdict.value for hole in report.holes]
    for hole, ranges in zip(report.holes, holes["ranges"], strict=True):
        lines = [(changes["line"][removed], changes["line"][restored]) for _, _, removed, restored in ranges]
        assert lines == [(each.removed.line, each.restored.line) for each in hole.ranges]


def test_refused_changes_are_marked(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(
        "7@1.0:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000 ua=0x1000 ret=0\n"
        "7@2.0:kvm_set_user_memory Slot#1 flags=0x0 gpa=0x0 size=0x8001 ua=0xffffffff00001001 ret=-22\n"
    )
    timeline = traces.read(file)
    changes = embedded(page(check(timeline), timeline))["changes"]
    assert (changes["kind"], changes["refused"], changes["transaction"]) == ("cr", [[1, "EINVAL"]], [0, -1])


def test_hostile_text_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").write_text(BOOT.read_text())
    timeline = traces.read("x")
    timeline.path = HOSTILE
    state = traces.RunState({traces.Vcpu(1, 0): [(0.0, 4e9)]}, first=0.0, last=4e9, source=HOSTILE)
    timeline.run_state = state
    html = page(check(timeline), timeline)
    assert html.count("<script") == 2  # the data, and ours
    assert html.count("</script") == 2
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in html
    for raw in ("<", ">", "&"):
        assert raw not in re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)[0]


def test_only_this_script_and_this_style_may_run() -> None:
    timeline = traces.read(BOOT)
    html = page(check(timeline), timeline)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.findall(r"""(?:src|href)\s*=\s*["']""", html)


def test_without_data_the_page_is_small() -> None:
    timeline = traces.read(BOOT)
    html = page(check(timeline), timeline)
    (found,) = re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert len(html.encode()) - len(found) < 300_000


def test_lanes_follow_the_run_state() -> None:
    """Each piece of a lane is where RunState says the vCPU was, from the first to the last moment that it tells of."""
    timeline = traces.read(TRACES / "strace-pc.txt")
    assert timeline.span is not None
    first, last = timeline.span
    vcpu = traces.Vcpu(101, 0)
    state = traces.RunState({vcpu: [(first, first + 0.25), (first + 0.5, last)]}, first=first - 1, last=last + 1)
    timeline.run_state = state
    (lane,) = embedded(page(check(timeline), timeline))["lanes"]
    assert lane["name"] == "vCPU 0 (thread 101)"
    wanted = {"guest": "g", "kvm_run": "r", "kvm": "k", "user": "u", "unknown": "?"}
    assert lane["where"] == "".join(wanted[each.where.value] for each in state.stretches(vcpu))
    inner = [round((each.start - timeline.changes[0].time) * 1e9) for each in state.stretches(vcpu)[1:]]  # type: ignore[operator]
    assert lane["edges"][1:-1] == pytest.approx(inner, abs=500)
    assert len(lane["edges"]) == len(lane["where"]) + 1


def test_short_pieces_are_joined_but_never_near_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu = traces.Vcpu(1, 0)
    pieces = [
        Stretch(i + offset, i + end, where)
        for i in range(100)
        for offset, end, where in ((0.0, 0.9, Where.GUEST), (0.9, 1.0, Where.USER))
    ]
    pieces[120] = pieces[120]._replace(where=Where.UNKNOWN)
    monkeypatch.setattr(data, "MOST_STRETCHES", 20)
    kept = data._thinned({vcpu: pieces}, [(50.4, 51.95)])[vcpu]
    assert len(kept) < 20
    assert kept[0][0] == 0.0
    assert all(before[1] == after[0] for before, after in itertools.pairwise(kept))
    for wanted in ((50, 50.9, "g"), (50.9, 51.0, "u"), (51, 51.9, "g"), (51.9, 52.0, "u"), (60, 60.9, "?")):
        assert wanted in kept


def test_the_command_writes_it_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    assert main(["check", str(BOOT), "--html", str(file)]) == 0
    assert "6 holes" in capsys.readouterr().out
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert main(["check", str(BOOT), "--html", "-"]) == 0
    assert capsys.readouterr().out == file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--html", "/nonexistent/x.html"], "there is no such folder"),
        (["--html", str(TRACES)], "a folder"),
        (["--html", "-", "--json"], "standard output is taken by --json"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(BOOT), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_remarks_and_assumed_slots_are_on_the_page(tmp_path: Path) -> None:
    """Each remark with why it matters and who was bitten; each slot that was assumed, and no section where none is."""
    file = tmp_path / "late"
    file.write_text(
        "7@1.0:kvm_set_user_memory Slot#0 flags=0x1 gpa=0x0 size=0x0 ua=0x7f0000000000 ret=0\n"
        "7@1.001:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x80000 ua=0x7f0000000000 ret=0\n"
        "7@1.002:kvm_set_user_memory Slot#1 flags=0x0 gpa=0x80000 size=0x80000 ua=0x7f0000080000 ret=0\n"
        "7@2.0:kvm_set_user_memory Slot#2 flags=0x0 gpa=0x80000 size=0x1000 ua=0x7f0000090000 ret=-17\n"
    )
    timeline = traces.read(file)
    report = check(timeline)
    html = page(report, timeline)
    assert report.remarks
    for each in report.remarks:
        for words in (each.lint.why[1:], each.lint.bitten, each.text):
            assert str(escape(words)) in html
    assert "line 1: slot 0 at [0x0, 0x100000) 1 MiB, userspace_addr 0x7f0000000000" in html
    assert 'id="remarks"' not in page(check(timeline, with_lint=False), timeline)
    boot = traces.read(BOOT)
    assert 'id="assumed"' not in page(check(boot), boot)
