"""What ``guestmem dirty-log`` prints: what was lost, how long each phase took, what it did."""

from __future__ import annotations

import sys
from typing import TextIO

from ..compare.dirty_log_result import DirtyLogComparison, DirtyLogRow
from ..units import format_ns, format_size
from .design_tables import DesignTable, bad, print_tables, verdict

__all__ = ["print_dirty_log"]

LEGEND = (
    ("pages written", "pages whose contents changed between two logs, by comparing memory"),
    ("in a log", "pages that logs named; marked: by how many faults"),
    ("lost", "pages that changed after the last log that named them: what a migration would have missed"),
    ("before, after", "every vCPU writes its share of all pages once: before logging is switched on, after it is off"),
    ("dirty", "the same while logging is on, nothing being dirty at first; get, clear: the log of all pages then"),
    ("under load", "get and clear while vCPUs write"),
    ("first writes", "one page in each 2 MiB, once logging is off: what switching it off has left undone"),
    ("invalidations", "waited for by all vCPUs in the guest; of clear: of all iterations"),
    (
        "table pages",
        "stage-2 table pages in use: before logging, under it, when it is switched off, after the first writes",
    ),
)
_TIMES = (
    ("populate", "populate"),
    ("before", "before"),
    ("enable", "enable"),
    ("dirty", "dirty"),
    ("get", "get"),
    ("clear", "clear"),
    ("live", "under load"),
    ("disable", "disable"),
    ("rebuild", "first writes"),
    ("after", "after"),
)


def print_dirty_log(comparison: DirtyLogComparison, *, stream: TextIO | None = None) -> None:
    """Print the tables to ``stream`` (standard output if None): narrow on a terminal that is too narrow for them."""
    stream = sys.stdout if stream is None else stream
    stream.write(
        f"dirty-log: {format_size(comparison.memory)}, {comparison.iterations} iterations, {comparison.repeat} runs a "
        f"row; engine soft ({comparison.arch}) on {comparison.cores} cores, seed {comparison.seed}\n"
    )
    print_tables((_seen(comparison), _times(comparison), _work(comparison)), stream)
    stream.write("\n")
    for name, summary in comparison.designs.items():
        stream.write(f"  {name}: {summary}\n")
    for name, meaning in LEGEND:
        stream.write(f"  {name}: {meaning}\n")
    if any(row.oversubscribed for row in comparison.rows):
        stream.write(f"  *: more vCPUs than the {comparison.cores} cores, so times include the scheduler's\n")
    stream.write("\n")
    if comparison.interrupted:
        stream.write("interrupted: the last row holds what was measured so far\n")
    stream.write(verdict(comparison) + "\n")


def _seen(comparison: DirtyLogComparison) -> DesignTable:
    return DesignTable(
        "What was lost",
        ("pages written", "in a log", "marked", "logs under load", "writes meanwhile", "lost"),
        comparison.rows,
        [
            [
                *map(str, (row.written, row.named, row.marked, row.live_logs, row.live_writes)),
                bad(row.lost),
            ]
            for row in comparison.rows
        ],
    )


def _times(comparison: DirtyLogComparison) -> DesignTable:
    return DesignTable(
        "How long it took, median",
        tuple(title for _, title in _TIMES),
        comparison.rows,
        [
            [format_ns(row.times[phase].median) if row.times[phase].count else "-" for phase, _ in _TIMES]
            for row in comparison.rows
        ],
    )


def _work(comparison: DirtyLogComparison) -> DesignTable:
    phases = ("enable", "dirty", "clear", "disable", "rebuild")
    pages = ("before", "dirty", "disable", "rebuild")
    return DesignTable(
        "What it did, a run",
        (
            *(f"invalidations: {phases[0]}", *phases[1:-1], "first writes"),
            *("faults: dirty", "first writes"),
            *("table pages: before", "logging", "off", "written"),
        ),
        comparison.rows,
        [
            [
                *(_each(row, row.work[phase].invalidations) for phase in phases),
                *(_each(row, row.work[phase].faults) for phase in ("dirty", "rebuild")),
                *(str(row.table_pages.get(phase, "-")) for phase in pages),
            ]
            for row in comparison.rows
        ],
    )


def _each(row: DirtyLogRow, count: int) -> str:
    """A count of all repeats, for one."""
    return f"{count / row.repeats:.0f}" if row.repeats else "-"
