"""The page in a real browser: it opens without an error, keys move it, and the numbers in it are those of the JSON.

Needs Debian's chromium and playwright (``apt-get install chromium``, ``pip install guestmem[browser]``).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestmem import traces
from guestmem.check import Report, check
from guestmem.cli import main
from guestmem.report.page import page
from guestmem.units import format_ns

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (guestmem[browser])")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
    pytest.mark.slow,
]
TRACES = Path(__file__).parents[2] / "examples" / "traces"
BOOT = TRACES / "pc-seabios-smp2.log"


class Shown:
    """A page that is open, and what it complained of."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("dialog", self._dialog)
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("#chart > *", state="attached")

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append("dialog")
        dialog.dismiss()

    def text(self, selector: str) -> str:
        result: str = self.tab.inner_text(selector)
        return result

    def press(self, key: str) -> None:
        self.tab.keyboard.press(key)
        self.tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def rows(self, table: str) -> list[list[str]]:
        found: list[list[str]] = self.tab.evaluate(
            "id => [...document.querySelectorAll(`#${id} tbody tr`)]"
            ".map(row => [...row.cells].map(cell => cell.innerText.trim()))",
            table,
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def written(folder: Path, trace: Path | str, **options: Any) -> tuple[Path, traces.Timeline, Report]:
    timeline = traces.read(trace, **options)
    report = check(timeline)
    file = folder / "page.html"
    file.write_text(page(report, timeline))
    return file, timeline, report


def in_and_out(timeline: traces.Timeline) -> traces.RunState:
    """vCPU 0 in the guest throughout, vCPU 1 only before the first change."""
    assert timeline.span is not None
    first, last = timeline.span
    return traces.RunState(
        {traces.Vcpu(101, 0): [(first - 1, last + 1)], traces.Vcpu(102, 1): [(first - 1, first - 0.5)]},
        first=first - 1,
        last=last + 1,
        source="a test",
    )


@pytest.mark.parametrize("name", ["pc-seabios-smp2.log", "q35-seabios-smp2.log", "strace-pc.txt", "pc-migration.log"])
def test_each_transaction_says_what_the_json_says(browser: Any, tmp_path: Path, name: str) -> None:
    file, timeline, report = written(tmp_path, TRACES / name)
    shown = Shown(browser, file)
    holes = {hole["transaction"]: hole for hole in report.as_dict()["holes"]}
    shown.press("Home")
    for transaction in timeline.transactions:
        assert shown.text("#step-title") == f"Transaction {transaction.index + 1} of {len(timeline.transactions)}"
        rows = shown.rows("change-table")
        assert [int(row[0]) for row in rows] == [each.line for each in transaction.changes]
        assert [row[3] for row in rows] == [
            f"{each.change.as_id}:{each.change.slot}" if each.change.as_id else str(each.change.slot)
            for each in transaction.changes
        ]
        words = shown.text(".hole-words")
        if transaction.index in holes:
            hole = holes[transaction.index]
            assert words.lower().startswith(hole["verdict"])
            assert hole["reason"] in words
            if hole["seconds"] and hole["first_line"] != hole["last_line"]:
                assert f"Missing for {format_ns(hole['seconds'] * 1e9)}" in words
            for each in hole["atomic_sets"]:
                assert ", ".join(each["primitives"]) in shown.text("#sets")
        else:
            assert words.startswith("No hole")
        shown.press("ArrowRight")
    assert shown.complaints == []
    assert shown.requests == [file.as_uri()]


def test_assumed_slots_are_there_from_the_left_edge_and_marked(browser: Any, tmp_path: Path) -> None:
    event = "7@{}:kvm_set_user_memory AddrSpace#0 Slot#{} flags=0x0 gpa={:#x} size={:#x} ua={:#x} ret=0\n"
    (tmp_path / "slots.json").write_text(
        json.dumps(
            [
                {"slot": 0, "guest_phys_addr": 0, "memory_size": 0xA0000, "userspace_addr": 0x7F0000000000},
                {"guest_phys_addr": 0xFFFC0000, "memory_size": 0x40000, "flags": 2},
            ]
        )
    )
    (tmp_path / "trace").write_text(
        event.format("1.000000", 0, 0, 0, 0x7F0000000000) + event.format("1.000100", 0, 0, 0x8000, 0x7F0000000000)
    )
    file, _, _ = written(tmp_path, tmp_path / "trace", assume_slots=tmp_path / "slots.json")
    shown = Shown(browser, file)
    shown.press("Home")
    assert [row[:2] for row in shown.rows("before-table")] == [["0 (assumed)", "[0x0, 0xa0000) 640 KiB"]]
    assert [row[:2] for row in shown.rows("after-table")] == [["0", "[0x0, 0x8000) 32 KiB"]]
    assert shown.rows("change-table")[0][3] == "0 (assumed before)"
    assert shown.tab.evaluate("() => drawn.place && lives.from.filter(each => each === -1).length") == 2
    assert shown.complaints == []


def test_memory_before_and_after_is_what_a_dict_says(browser: Any, tmp_path: Path) -> None:
    file, timeline, _ = written(tmp_path, BOOT)
    shown = Shown(browser, file)
    shown.press("Home")
    slots: dict[int, tuple[int, int, int]] = {}
    for transaction in timeline.transactions:
        before = dict(slots)
        for each in transaction.changes:
            slots.pop(each.change.slot, None)
            if each.change.npages:
                slots[each.change.slot] = (
                    each.change.guest_phys_addr,
                    each.change.memory_size,
                    each.change.userspace_addr,
                )
        for table, wanted in (("before-table", before), ("after-table", slots)):
            for name, frames, host, _flags in shown.rows(table):
                gpa, size, hva = wanted[int(name)]
                assert frames.startswith(f"[{gpa:#x}, {gpa + size:#x}) ")
                assert host == f"{hva:#x}"
        changed = {each.change.slot for each in transaction.changes if each.change.npages}
        assert changed <= {int(row[0]) for row in shown.rows("after-table")}
        shown.press("ArrowRight")


def test_keys_slider_and_holes_move_it(browser: Any, tmp_path: Path) -> None:
    file, timeline, report = written(tmp_path, BOOT)
    shown = Shown(browser, file)
    last = len(timeline.transactions)

    def at() -> int:
        return int(re.findall(r"\d+", shown.text("#step-title"))[0])

    shown.press("End")
    assert at() == last
    shown.press("ArrowRight")
    assert at() == last
    shown.press("ArrowLeft")
    assert at() == last - 1
    shown.press("Home")
    assert at() == 1
    for hole in report.holes:
        shown.press("n")
        assert at() == hole.transaction + 1
    shown.press("p")
    assert at() == report.holes[-2].transaction + 1
    shown.tab.evaluate(
        "() => { const s = document.getElementById('slider'); s.value = 3; s.dispatchEvent(new Event('input')); }"
    )
    assert at() == 4
    shown.tab.click("#hole-table tbody tr:nth-child(2)")
    assert at() == report.holes[1].transaction + 1
    view = "() => [view.from, view.until, view.scale, view.focus]"
    shown.press("0")
    whole = shown.tab.evaluate(view)
    shown.press("+")
    inner = shown.tab.evaluate(view)
    assert inner[1] - inner[0] == pytest.approx((whole[1] - whole[0]) / 2)
    shown.press("d")
    assert shown.tab.evaluate(view)[0] > inner[0]
    shown.press("z")
    shown.press("f")
    shown.press("t")
    assert shown.tab.evaluate(view)[2:] == ["scaled", True]
    assert shown.complaints == []


def test_lanes_tell_inside_outside_and_unknown(browser: Any, tmp_path: Path) -> None:
    timeline = traces.read(BOOT)
    file, _, report = written(tmp_path, BOOT, run_state=in_and_out(timeline))
    shown = Shown(browser, file)
    assert {hole.verdict.value for hole in report.holes} == {"open"}
    assert shown.text("#count-open") == str(len(report.holes))
    assert "vCPU 0 (thread 101)" in shown.text(".hole-words")
    assert shown.tab.locator("#chart .lane-guest").count() == 2
    assert shown.tab.locator("#chart .lane-outside").count() == 1
    assert shown.tab.locator("#chart .lane-unknown").count() == 2  # beneath, for what is not known
    assert shown.tab.locator("#chart .hole.open").count() == 1
    assert shown.complaints == []


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    timeline = traces.read(BOOT)
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    timeline.path = hostile
    timeline.run_state = in_and_out(timeline)
    timeline.run_state.source = hostile
    file = tmp_path / "page.html"
    file.write_text(page(check(timeline), timeline))
    shown = Shown(browser, file)
    for key in ("ArrowRight", "n", "z", "t", "f"):
        shown.press(key)
    assert shown.text("h1") == hostile
    assert shown.complaints == []
    assert shown.tab.locator("img").count() == 0


def test_a_script_that_is_not_ours_does_not_run(browser: Any, tmp_path: Path) -> None:
    """The policy is there: put into the page by hand, a script is refused."""
    file, _, _ = written(tmp_path, BOOT)
    file.write_text(file.read_text().replace("</body>", "<script>document.title = 'mine'</script></body>"))
    shown = Shown(browser, file)
    assert shown.tab.title() != "mine"
    assert any("Content Security Policy" in each for each in shown.complaints)


@pytest.mark.parametrize("width", [400, 2000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    file, _, _ = written(tmp_path, BOOT)
    shown = Shown(browser, file, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert shown.tab.evaluate("() => document.documentElement.scrollWidth") <= width
    paper, ink = shown.tab.evaluate(
        "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    lightness = [sum(map(int, re.findall(r"\d+", each)[:3])) for each in (paper, ink)]
    assert (lightness[0] > lightness[1]) == (scheme == "light")


def test_it_prints(browser: Any, tmp_path: Path) -> None:
    file, _, _ = written(tmp_path, BOOT)
    shown = Shown(browser, file, color_scheme="dark")
    shown.tab.emulate_media(media="print")
    assert not shown.tab.locator("#slider").is_visible()
    assert shown.tab.locator("#chart").is_visible()
    assert shown.tab.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.tab.pdf().startswith(b"%PDF")


def test_a_hundred_thousand_changes_stay_few_elements(browser: Any, tmp_path: Path) -> None:
    """Bundled until zoomed: the number of elements is bounded in every view."""
    trace = tmp_path / "trace"
    line = "7@{:.6f}:kvm_set_user_memory Slot#{} flags=0x0 gpa={:#x} size={:#x} ua=0x1000 ret=0\n"
    with trace.open("w") as stream:
        for i in range(33_400):
            slot, time = i % 500, i * 0.02
            sizes = (0x800000,) if i < 500 else (0, 0x800000, 0, 0x800000)[: 4 if i % 2 else 2]
            stream.writelines(
                line.format(time + k * 0.0001 + (k > 1) * 0.01, slot, slot << 24, size) for k, size in enumerate(sizes)
            )
    file, timeline, report = written(tmp_path, trace)
    assert len(timeline.changes) > 98_000
    shown = Shown(browser, file)
    elements = [
        shown.tab.evaluate(
            """([part, at]) => {
                setView(wholeWidth() * at / 5, wholeWidth() * at / 5 + wholeWidth() / part);
                draw();
                return chart.querySelectorAll('*').length;
            }""",
            [part, at],
        )
        for part in (1, 3, 100, 10_000)
        for at in range(5)
    ]
    assert max(elements) < 2500
    shown.press("End")
    assert shown.text("#step-title") == f"Transaction {len(timeline.transactions)} of {len(timeline.transactions)}"
    assert shown.tab.evaluate("() => holes.length") == len(report.holes)
    assert shown.complaints == []


def test_a_trace_without_times_or_changes_opens(browser: Any, tmp_path: Path) -> None:
    for text in (
        "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000 ua=0x1000 ret=0\n",
        "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000 ua=0x1000 ret=-17\n",
    ):
        (tmp_path / "trace").write_text(text)
        assert main(["check", str(tmp_path / "trace"), "--html", str(tmp_path / "page.html")]) == 0
        shown = Shown(browser, tmp_path / "page.html")
        for key in ("ArrowRight", "n", "z", "t", "f", "+", "0", "End"):
            shown.press(key)
        assert shown.complaints == []
