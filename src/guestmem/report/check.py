"""What ``guestmem check`` prints: a summary that says the worst first, then a table with one row for each hole."""

from __future__ import annotations

import io
import sys
import textwrap
from html import escape
from typing import TYPE_CHECKING, NamedTuple, TextIO

from ..check import NOT_SEEN, Verdict
from ..check.late import Why
from ..notebook import SHOWN, html_table
from ..units import PAGE_SHIFT, format_frames, format_ns
from .design_tables import terminal_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from rich.text import Text

    from ..check import Hole, LateReturn, Remark, Report
    from ..traces import Timeline

__all__ = [
    "HoleCells",
    "RemarkWords",
    "as_html",
    "assumed_words",
    "brief",
    "hole_cells",
    "late_words",
    "print_report",
    "remark_words",
    "summary",
]

STYLES = {Verdict.OPEN: "bold red", Verdict.UNKNOWN: "yellow", Verdict.CLOSED: "green"}
HOST_MEMORY = {True: "the same", False: "other", None: "partly other"}
RECORD = (
    "record KVM_RUN (strace -f -ttt -T -e trace=ioctl) or kvm_entry, kvm_exit and kvm_userspace_exit, and give it as "
    "--run-state FILE"
)
HEADINGS = ("lines", "thread", "missing for", "frames", "host memory", "would have to be atomic", "verdict")
SCREEN = 24
"""Lines of a terminal that nobody has made larger."""
FRAMES_SHOWN = 4
PIPE_WIDTH = 400
"""Columns of a table that no terminal shows: wide enough that no row wraps."""


def summary(report: Report) -> str:
    """The report in a few lines of plain text, without the table."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.changes.items() if count)
    refused = f", {report.refused} refused" if report.refused else ""
    total = sum(report.changes.values())
    text = (
        f"{report.path}: {report.format} trace, {_count(total, 'change')} ({kinds or 'none'}{refused}) in "
        f"{_count(report.transactions, 'transaction')}; {_count(report.skipped, 'other line')}"
    )
    lines = [text]
    if report.holes:
        verdicts = ", ".join(f"{count} {verdict.value}" for verdict, count in report.verdicts.items() if count)
        text = f"{_count(len(report.holes), 'hole')}: {verdicts}"
        longest = report.longest
        if longest is not None:
            text += f"; longest {_duration(longest)}, {_lines(longest)}, {_frames(longest)[0]}"
            more = len(longest.frames) - 1
            text += f" and {more} more" if more else ""
        lines.append(text)
    else:
        within = "no frame that has memory before and after a transaction was without in between"
        lines.append(f"no hole inside a transaction, but see below: {within}" if report.late else f"no hole: {within}")
    if report.late:
        lines.append(f"{_count(len(report.late), 'time')} frames come back late: slow transactions, or two? See below")
    if report.slow:
        lines.append(f"transactions: {report.slow} was slow, so up to {report.gap * 1e3:g} ms between changes (--gap)")
    elif report.timed and report.transactions > 1 and not report.holes and not report.late:
        lines.append(f"transactions: at most {report.gap * 1e3:g} ms between changes; --gap takes a slower VMM's")
    if report.run_state is not None:
        lines.append(f"run state: {report.run_state}")
        if report.holes:
            lines.append(NOT_SEEN)
    elif report.holes:
        lines.append(f"run state: not in this trace, so whether a vCPU saw a hole is unknown; {RECORD}")
    else:
        lines.append("run state: not in this trace")
    if not report.timed and total:
        lines.append("no times in this trace: changes are grouped by order alone (QEMU: -msg timestamp=on)")
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def print_report(report: Report, *, stream: TextIO | None = None, limit: int = 0) -> None:
    """Print summary and table to ``stream`` (standard output if None), at most ``limit`` holes unless it is 0.

    Elsewhere than on a terminal it is plain text of which no row wraps. On a terminal that is too narrow for the table,
    each hole is a few lines instead.
    """
    stream = sys.stdout if stream is None else stream
    columns = terminal_width(stream)
    for line in summary(report).splitlines():
        stream.write((line if columns is None else _wrapped(line, columns)) + "\n")
    holes = report.holes[:limit] if limit else report.holes
    if holes:
        from rich.console import Console

        stream.write("\n")
        if columns is not None:
            console = Console(file=stream, width=columns)
            table = _table(holes)
            if console.measure(table, options=console.options.update_width(PIPE_WIDTH)).maximum <= console.width:
                console.print(table)
            else:
                for hole in holes:
                    console.print(_block(hole, columns), soft_wrap=True)
        else:
            text = io.StringIO()
            Console(file=text, width=PIPE_WIDTH, color_system=None).print(_table(holes))
            stream.writelines(line.rstrip() + "\n" for line in text.getvalue().splitlines())
        if len(holes) < len(report.holes):
            stream.write(f"… and {len(report.holes) - len(holes)} more: --limit 0 shows all, --json has all\n")
    if report.late:
        stream.write("\nSlow transactions, or two? (--fail-on hole counts them)\n")
        late = report.late[:limit] if limit else report.late
        stream.writelines(f"  {late_words(each)}\n" for each in late)
        if len(late) < len(report.late):
            stream.write(f"… and {len(report.late) - len(late)} more\n")
    if report.remarks:
        stream.write("\nMore than holes (--no-lint leaves it out)\n")
        stream.writelines(f"{line}\n" for line in _remarks(report.remarks))


def brief(report: Report) -> str:
    """What fits a screen of 80 columns and 24 lines: the summary, and a line for each of the first holes."""
    lines = [part for line in summary(report).splitlines() for part in textwrap.wrap(line, 79, subsequent_indent="  ")]
    room = max(3, SCREEN - len(lines) - 2)
    shown = report.holes[: room if len(report.holes) <= room else room - 1]
    rows = [
        (
            each.lines,
            each.duration,
            each.frames[0] + (f" +{len(hole.frames) - 1}" if len(hole.frames) > 1 else ""),
            each.kind,
        )
        for hole in shown
        for each in (hole_cells(hole),)
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(shown) < len(report.holes):
        lines.append(f"… and {len(report.holes) - len(shown)} more: .holes has all")
    return "\n".join(lines)


def as_html(report: Report) -> str:
    """For a notebook: the summary, and a table of the first holes."""
    head = "".join(f"<p>{escape(line)}</p>" for line in summary(report).splitlines())
    if not report.holes:
        return head
    cells = [hole_cells(hole) for hole in report.holes[:SHOWN]]
    rows = [
        (
            *(each.lines, each.thread, each.duration),
            "; ".join(each.frames),
            each.host_memory,
            "; ".join(each.sets),
            each.verdict,
        )
        for each in cells
    ]
    return head + html_table(HEADINGS, rows, len(report.holes) - len(cells))


class HoleCells(NamedTuple):
    """One hole as a row of a table, in words; ``kind`` is the bare verdict."""

    lines: str
    thread: str
    duration: str
    frames: list[str]
    host_memory: str
    sets: list[str]
    verdict: str
    kind: str


def hole_cells(hole: Hole) -> HoleCells:
    """The words of a hole's row, on a terminal and on the page."""
    return HoleCells(
        lines=f"{hole.first_line}-{hole.last_line}" if hole.first_line != hole.last_line else str(hole.first_line),
        thread="" if hole.thread is None else str(hole.thread),
        duration=_duration(hole),
        frames=_some_frames(hole),
        host_memory=HOST_MEMORY[hole.same_host_memory],
        sets=_sets(hole),
        verdict=_verdict(hole),
        kind=hole.verdict.value,
    )


class RemarkWords(NamedTuple):
    """One kind of remark: what it is, why it matters, who was bitten, and what was found, a line each."""

    what: str
    why: str
    bitten: str
    found: list[str]


def remark_words(remarks: tuple[Remark, ...]) -> list[RemarkWords]:
    """Each kind once, with why it matters and who was bitten, and what was found."""
    kinds: list[RemarkWords] = []
    kind = ""
    for each in remarks:
        if each.lint.name != kind:
            kind = each.lint.name
            kinds.append(RemarkWords(each.lint.what, each.lint.why, each.lint.bitten, []))
        which = f"line{'s' * (len(each.lines) != 1)} {', '.join(map(str, each.lines))}"
        kinds[-1].found.append(f"{which}: {each.text}")
    return kinds


def _remarks(remarks: tuple[Remark, ...]) -> list[str]:
    lines: list[str] = []
    for each in remark_words(remarks):
        lines += [f"  {each.what}: {each.why}", f"    bitten: {each.bitten}", *(f"    {found}" for found in each.found)]
    return lines


def assumed_words(timeline: Timeline) -> list[str]:
    """What was taken to be there before the trace began, a line a slot: from --assume-slots, or implied."""
    told = [
        f"line {timeline.changes.line[index]}: slot {slot.id}{_of_space(slot.as_id)} at "
        f"{format_frames(slot.base_gfn, slot.end_gfn)}, userspace_addr {slot.userspace_addr:#x}"
        for index, slot in sorted(timeline.assumed.items())
    ]
    untouched = [
        f"no line: {'a slot' if each.slot is None else f'slot {each.slot}'}{_of_space(each.as_id)} at "
        f"{format_frames(each.base_gfn, each.base_gfn + each.npages)}"
        for each in timeline.untouched
    ]
    return told + untouched


def _of_space(as_id: int) -> str:
    return f" of address space {as_id}" if as_id else ""


def late_words(late: LateReturn) -> str:
    """What came back late, in a line."""
    thread = "" if late.removed.thread is None else f", thread {late.removed.thread}"
    lines = f"lines {late.removed.line}-{late.restored.line}{thread}"
    first, *more = late.frames
    frames = f"[{first[0] << PAGE_SHIFT:#x}, {first[1] << PAGE_SHIFT:#x})" + (f" and {len(more)} more" if more else "")
    after = "" if late.duration is None else f" after {format_ns(late.duration * 1e9)}"
    text = f"{lines}: {_count(late.npages, 'frame')} {frames} come back{after}"
    if late.gap is not None:
        return f"{text}: a slow transaction or two? --gap {late.gap * 1e3:g} joins them"
    if late.removed.thread != late.restored.thread:
        return f"{text}, given by thread {late.restored.thread}: one step of two threads, or two steps?"
    if late.why is Why.SPACE:
        return f"{text}, in address space {late.as_id}, after a change of another one: one step or two?"
    if late.why is Why.RUN:
        return f"{text}, after the thread ran its vCPU: one step or two?"
    return f"{text}, in a later step of the same thread: one or two?"


def _table(holes: Sequence[Hole]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("lines", no_wrap=True)
    table.add_column("thread", no_wrap=True, justify="right")
    table.add_column("missing for", no_wrap=True, justify="right")
    table.add_column("frames", no_wrap=True)
    table.add_column("host memory", overflow="fold")
    table.add_column("would have to be atomic", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for hole in holes:
        cells = hole_cells(hole)
        table.add_row(
            cells.lines,
            cells.thread,
            cells.duration,
            "\n".join(cells.frames),
            cells.host_memory,
            "\n".join(cells.sets),
            Text(cells.verdict, style=STYLES[hole.verdict]),
        )
    return table


def _wrapped(text: str, columns: int, indent: str = "  ") -> str:
    """``text`` in lines of ``columns``, broken between words only: a path or an address stays whole."""
    lines = textwrap.wrap(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def _block(hole: Hole, columns: int) -> Text:
    """One hole on a few short lines."""
    from rich.text import Text

    thread = "" if hole.thread is None else f", thread {hole.thread}"
    text = Text(f"{_lines(hole)}{thread}, missing for {_duration(hole)}: ")
    verdict = _wrapped(f"{text.plain}{_verdict(hole)}", columns, "    ")
    text.append(verdict[len(text) :], style=STYLES[hole.verdict])
    for line in (*_some_frames(hole), f"host memory: {HOST_MEMORY[hole.same_host_memory]}"):
        text.append(f"\n    {line}")
    for line in _sets(hole):
        text.append(f"\n    would have to be atomic: {line}")
    return text


def _sets(hole: Hole) -> list[str]:
    return [
        f"{_line_list(each.lines)}: {', '.join(primitive.value for primitive in each.primitives)}"
        for each in hole.atomic_sets
    ]


def _some_frames(hole: Hole) -> list[str]:
    frames = _frames(hole)
    if len(frames) > FRAMES_SHOWN:
        return [*frames[:FRAMES_SHOWN], f"… {len(frames) - FRAMES_SHOWN} more, {_size(hole.nbytes)} in all"]
    return frames


def _verdict(hole: Hole) -> str:
    return hole.verdict.value if hole.reason == "no run state" else f"{hole.verdict.value}: {hole.reason}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _duration(hole: Hole) -> str:
    if hole.duration is None:
        return "?"
    return "one call" if hole.first_line == hole.last_line else format_ns(hole.duration * 1e9)


def _lines(hole: Hole) -> str:
    if hole.first_line == hole.last_line:
        return f"line {hole.first_line}"
    return f"lines {hole.first_line}-{hole.last_line}"


def _frames(hole: Hole) -> list[str]:
    space = f"as {hole.as_id}: " if hole.as_id else ""
    return [
        f"{space}[{start << PAGE_SHIFT:#x}, {end << PAGE_SHIFT:#x}) {_size((end - start) << PAGE_SHIFT)}"
        for start, end in hole.frames
    ]


def _size(nbytes: int) -> str:
    """A size in the largest binary unit in which two places tell it exactly.

    >>> _size(0xFF40000), _size(0x1000), _size(3 << 40), _size(2047 << 20), _size((3 << 40) - 4096)
    ('255.25 MiB', '4 KiB', '3 TiB', '2047 MiB', '3221225468 KiB')
    """
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if nbytes >> shift and nbytes * 100 % (1 << shift) == 0:
            return f"{nbytes / (1 << shift):.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{nbytes >> 10} KiB"


def _line_list(lines: tuple[int, ...]) -> str:
    """Lines with runs drawn together.

    >>> _line_list((10, 13, 14, 15))
    '10, 13-15'
    """
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
