"""print(check_trace(…)) fits a screen; Report, Timeline and Memslots show themselves in notebooks, escaped."""

from __future__ import annotations

import html.parser
from pathlib import Path

import pytest

from guestmem import check_trace, read_trace

TRACES = Path(__file__).parents[2] / "examples" / "traces"
BOOT = TRACES / "pc-seabios-smp2.log"


class Cells(html.parser.HTMLParser):
    """Rows of cells of all tables, and every tag that was met."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        self._inside = tag in {"td", "th"}
        if self._inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("holes", [0, 1, 6, 600])
def test_a_report_fits_a_screen(tmp_path: Path, holes: int) -> None:
    file = tmp_path / ("a-long-name-of-a-trace-" * 3)
    line = "7@{:.6f}:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size={:#x} ua=0x1000 ret=0\n"
    file.write_text(
        line.format(0, 0x8000)
        + "".join(line.format(i, 0) + line.format(i + 0.001, 0x8000) for i in range(1, holes + 1))
    )
    report = check_trace(read_trace(file))
    assert len(report.holes) == holes
    lines = str(report).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80 or all(str(file) in each for each in lines if len(each) > 80)
    assert (f"… and {holes}" in str(report)) is False
    assert ("more: .holes has all" in str(report)) == (holes > 20)
    assert len(repr(report)) < 300


def test_a_report_names_each_hole() -> None:
    report = check_trace(read_trace(BOOT))
    assert repr(report) == f"Report({str(BOOT)!r}: 6 holes: 6 unknown)"
    for hole in report.holes:
        assert f"\n{hole.first_line}-{hole.last_line} " in str(report)


def test_a_notebook_gets_tables_of_them() -> None:
    timeline = read_trace(BOOT)
    report = check_trace(timeline)
    rows = Cells(report._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == [f"{hole.first_line}-{hole.last_line}" for hole in report.holes]
    rows = Cells(timeline._repr_html_()).rows
    assert [row[1] for row in rows[1:]] == [f"{each.first_line}-{each.last_line}" for each in timeline.transactions]


@pytest.mark.compiled_only
def test_memslots_show_their_slots() -> None:
    from guestmem import Memslots

    slots = Memslots()
    for i in range(50):
        slots.create(i, base_gfn=2 * i, npages=1, userspace_addr=0x7F0000000000)
    shown = slots._repr_html_()
    assert Cells(shown).rows[1] == ["0", "[0x0, 0x1000) 4 KiB", "0x7f0000000000", ""]
    assert "… and 10 more" in shown
    assert repr(slots) == "Memslots(50 slots)"


def test_hostile_names_are_escaped() -> None:
    timeline = read_trace(BOOT)
    timeline.path = "<script>alert(1)</script>"
    for shown in (timeline._repr_html_(), check_trace(timeline)._repr_html_()):
        assert "script" not in Cells(shown).tags
        assert "alert(1)" in shown
