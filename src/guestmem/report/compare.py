"""What ``guestmem compare`` prints: three tables, design by number of vCPUs, and what they may be trusted for.

What vCPUs saw, what it cost, and what the updates did. A zero means nothing without the number of attempts beside it,
and nothing at all in a run that did not catch the design that is broken on purpose; both are always printed.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, TextIO

from ..compare.result import ELSEWHERE, Comparison, Row, Spread
from ..units import format_ns
from .design_tables import PIPE_WIDTH, add_rows, bad, design_table, verdict

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_comparison", "verdict"]

SEEN = (
    ("accesses inside", "to memory that should be there, begun or ended while an update ran"),
    ("of these changed", "to ranges that the update changes"),
    ("data in a hole", "data accesses that became MMIO"),
    ("fetch kills", "instruction fetches from a hole: KVM_EXIT_INTERNAL_ERROR, the guest is dead"),
    ("answered", "data accesses in a hole that the VMM answered"),
    ("writes lost", "by counting in memory at the end"),
    ("wrong memory", "writes to memory that the update had taken away, by counting"),
    ("stale", "accesses begun after the update returned that still saw old memory"),
    ("torn", "updates without one instant: saw old later than another saw new; of those that could tell"),
)

UNMEASURED = (
    "a real guest cannot tell which host memory it sees, and what the kernel does inside an ioctl is not seen "
    "from outside (edit: time in ioctls; slowest vCPU: kicks and waits for them)"
)


def print_comparison(comparison: Comparison, *, stream: TextIO | None = None) -> None:
    """Print the tables to ``stream`` (standard output if None): as wide as a terminal, else plain and never wrapped."""
    stream = sys.stdout if stream is None else stream
    from rich.console import Console

    slow = f", vCPU 0 stays {comparison.slow_vcpu_ms:g} ms in read-side sections" if comparison.slow_vcpu_ms else ""
    stream.write(
        f"{comparison.path}: {comparison.changes} changes in {comparison.steps} transactions, {comparison.repeat} "
        f"replays a row, {comparison.interval_ms:g} ms between transactions; engine {comparison.engine} "
        f"({comparison.arch}) on {comparison.cores} cores, seed {comparison.seed}{slow}\n"
    )
    text = io.StringIO()
    if comparison.host:
        stream.write(f"host: {comparison.host}\n")
    terminal = stream.isatty()
    console = Console(file=stream) if terminal else Console(file=text, width=PIPE_WIDTH, color_system=None)
    for table in (_seen(comparison), _cost(comparison), _work(comparison)):
        console.print()
        console.print(table)
    stream.writelines(line.rstrip() + "\n" for line in text.getvalue().splitlines())
    stream.write("\n")
    for name, meaning in SEEN:
        stream.write(f"  {name}: {meaning}\n")
    stream.write("  update: a transaction; trace: all of one replay; stall: how long vCPUs had to wait for an update\n")
    stream.write("  one kick: of all vCPUs, with their acknowledgements and no update: the floor under every pause\n")
    if any(row.oversubscribed for row in comparison.rows):
        stream.write(f"  *: more vCPUs than the {comparison.cores} cores, so waits include the scheduler's\n")
    if comparison.rows and comparison.rows[0].unmeasured:
        stream.write(f"  -: engine {comparison.engine} cannot measure it: {UNMEASURED}\n")
    if refusals := [(row, text) for row in comparison.rows for text in row.refusals[:1]]:
        stream.writelines(
            f"  refused, so done with all vCPUs paused: {row.design}, {row.vcpus} vCPUs: {text}\n"
            for row, text in refusals
        )
    stream.write("\n")
    console = Console(file=stream) if terminal else Console(file=stream, width=PIPE_WIDTH, color_system=None)
    stream.write(
        f"Measured elsewhere, for reference only: {ELSEWHERE['what']}\n({ELSEWHERE['source']}; {ELSEWHERE['host']})\n"
    )
    console.print(_elsewhere())
    if comparison.interrupted:
        stream.write("interrupted: the last row holds what was measured so far\n")
    stream.write(verdict(comparison) + "\n")


def _unless(row: Row, name: str, text: str, seen: int = 0) -> str:
    """``text``, or "-" where the engine cannot measure ``name`` and nothing was ``seen`` of it all the same."""
    return "-" if name in row.unmeasured and not seen else text


def _seen(comparison: Comparison) -> Table:
    table = design_table("What vCPUs saw", "vCPUs", *(name for name, _ in SEEN))
    cells = [
        [
            str(row.inside),
            str(row.inside_changed),
            bad(row.holes),
            bad(row.killed),
            str(row.answered),
            bad(row.lost),
            bad(row.wrong),
            _unless(row, "stale", bad(row.stale + row.refused + row.strange), row.strange),
            _unless(row, "torn", f"{bad(row.torn)} of {row.instants}"),
        ]
        for row in comparison.rows
    ]
    add_rows(table, comparison.rows, cells)
    return table


def _spread(spread: Spread) -> str:
    return f"{format_ns(spread.mean)} ± {format_ns(spread.deviation)}" if spread.count else "-"


def _cost(comparison: Comparison) -> Table:
    table = design_table(
        "What it cost",
        "vCPUs",
        "update, median",
        "mean ± sd",
        "trace, mean ± sd",
        "stalls",
        "stall, median",
        "99 %",
        "worst",
        "one kick, median",
    )
    cells = [
        [
            format_ns(row.update_ns.median),
            _spread(row.update_ns),
            _spread(row.trace_ns),
            str(row.stalls),
            format_ns(row.stall_median_ns) if row.stalls else "-",
            format_ns(row.stall_p99_ns) if row.stalls else "-",
            format_ns(row.stall_worst_ns) if row.stalls else "-",
            format_ns(row.kick_ns.median),
        ]
        for row in comparison.rows
    ]
    add_rows(table, comparison.rows, cells)
    return table


def _work(comparison: Comparison) -> Table:
    table = design_table(
        "What the updates did, a replay",
        "vCPUs",
        "swaps",
        "SRCU waits",
        "kicks",
        "flushes",
        "pauses",
        "ranges in flux",
        "zaps",
        "refaults",
        "table pages",
        "slept",
        "lock",
        "edit",
        "kicking",
        "slowest vCPU",
        "readers",
    )
    cells = []
    for row in comparison.rows:
        replays = max(1.0, row.transactions / comparison.steps) if comparison.steps else 1.0
        counts = row.counts
        cells.append(
            [
                *(
                    _unless(row, name, f"{getattr(counts, name) / replays:.0f}")
                    for name in ("swaps", "srcu_waits", "kicks", "flushes", "pauses", "stalls", "zaps")
                ),
                _unless(row, "refaults", f"{row.refaults / replays:.0f}"),
                _unless(row, "table_pages", str(row.table_pages)),
                _unless(row, "slept", f"{counts.slept / replays:.0f}"),
                *(
                    _unless(row, name, format_ns(getattr(counts, name) / replays))
                    for name in ("lock_ns", "edit_ns", "kick_ns", "acks_ns", "grace_ns")
                ),
            ]
        )
    add_rows(table, comparison.rows, cells)
    return table


def _elsewhere() -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ELSEWHERE["columns"]:
        table.add_column(str(column), justify="right")
    for row in ELSEWHERE["rows"]:
        table.add_row(*map(str, row))
    return table
