"""What ``guestmem compare`` prints: three tables, design by number of vCPUs, and what they may be trusted for.

What vCPUs saw, what it cost, and what the updates did. A zero means nothing without the number of attempts beside it,
and nothing at all in a run that did not catch the design that is broken on purpose; both are always printed.
"""

from __future__ import annotations

import sys
from typing import TextIO

from ..compare.result import ELSEWHERE, Comparison, Row, Spread
from ..compare.summary import summary
from ..designs import LOGS as CLAIMS
from ..designs import find
from ..history import Verdict
from ..units import format_ns
from .design_tables import DesignTable, bad, print_tables, verdict

__all__ = ["design_tables", "print_comparison", "verdict"]

SEEN = (
    ("accesses inside", "to memory that should be there, begun or ended while an update ran"),
    ("of these changed", "to ranges that the update changes"),
    ("data in a hole", "data accesses that became MMIO"),
    (
        "fetch kills",
        "instruction fetches from a hole, KVM_EXIT_INTERNAL_ERROR, or private accesses there: the guest is dead",
    ),
    ("answered", "data accesses in a hole that the VMM answered"),
    ("writes lost", "by counting in memory at the end"),
    ("wrong memory", "writes to memory that the update had taken away, by counting"),
    ("stale", "accesses begun after the update returned that still saw old memory"),
    ("torn", "updates without one instant: saw old later than another saw new; of those that could tell"),
    ("one instant", "whether one explains all that was seen: fail also by a hole, or by old after the update's end"),
)

LOGS = (
    ("pages in logs", "pages that logs named which the caller was handed"),
    ("handed back", "of these, by the update itself, since their pair of frame and host page ended"),
    ("dropped", "pages that were dirty in a log when it was freed with its slot"),
    ("in no log", "pages that a caller who copied what logs named does not have as they are, at the end of a replay"),
)

COST = (
    *("update, median", "mean ± sd", "trace, mean ± sd"),
    *("vCPU stalls", "vCPU stall, median", "99 %", "worst"),
    "one kick, median",
)
WORK = (
    *(
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
    ),
    *("lock", "edit", "requests", "slowest vCPU", "readers"),
)

UNMEASURED = (
    "what the kernel does inside an ioctl is not seen from outside (edit: time in ioctls; slowest vCPU: kicks and "
    "waits for them), and torn needs one TSC for all vCPUs"
)


def print_comparison(comparison: Comparison, *, stream: TextIO | None = None) -> None:
    """Print the tables to ``stream`` (standard output if None), narrow on a terminal that is too narrow for them."""
    stream = sys.stdout if stream is None else stream
    slow = f", vCPU 0 stays {comparison.slow_vcpu_ms:g} ms in read-side sections" if comparison.slow_vcpu_ms else ""
    stream.write(
        f"{comparison.path}: {comparison.changes} changes in {comparison.steps} transactions, {comparison.repeat} "
        f"replays a row, {comparison.interval_ms:g} ms between transactions; engine {comparison.engine} "
        f"({comparison.arch}) on {comparison.cores} cores, seed {comparison.seed}{slow}\n"
    )
    stream.writelines(f"{note}\n" for note in comparison.notes)
    if comparison.host:
        stream.write(f"host: {comparison.host}\n")
    print_tables(design_tables(comparison), stream)
    stream.write("\n")
    for name, meaning in SEEN:
        stream.write(f"  {name}: {meaning}\n")
    if comparison.dirty_log:
        stream.writelines(f"  {name}: {meaning}\n" for name, meaning in LOGS)
        told = {find(row.design).logs for row in comparison.rows}
        stream.writelines(f"  log {name}: {meaning}\n" for name, meaning in CLAIMS.items() if name in told)
        stream.write("  logs: time for taking them and for what becomes of bits, a transaction; not in update\n")
    stream.write("  update: a transaction; trace: all of one replay; vCPU stall: a vCPU had to wait for an update\n")
    stream.write("  one kick: of all vCPUs, with their acknowledgements and no update: the floor under every pause\n")
    if any(row.oversubscribed for row in comparison.rows):
        stream.write(f"  *: more vCPUs than the {comparison.cores} cores, so waits include the scheduler's\n")
    if comparison.rows and comparison.rows[0].unmeasured:
        stream.write(f"  -: engine {comparison.engine} cannot measure it: {UNMEASURED}\n")
    stream.writelines(_private(comparison))
    unit = "ns" if comparison.engine == "soft" else "ticks of the TSC"
    stream.writelines(_witness(row, unit) for row in comparison.rows if row.witness is not None)
    if refusals := [(row, text) for row in comparison.rows for text in row.refusals[:1]]:
        stream.writelines(
            f"  refused, so done with all vCPUs paused: {row.design}, {row.vcpus} vCPUs: {text}\n"
            for row, text in refusals
        )
    stream.write(
        f"\nMeasured elsewhere, for reference only: {ELSEWHERE['what']}\n({ELSEWHERE['source']}; {ELSEWHERE['host']})\n"
    )
    names = ELSEWHERE["columns"]
    stream.write("".join(f"{name:>{max(5, len(name)) + 3}}" for name in names) + "\n")
    for values in ELSEWHERE["rows"]:
        stream.write(
            "".join(f"{value:>{max(5, len(name)) + 3}}" for name, value in zip(names, values, strict=True)) + "\n"
        )
    if comparison.interrupted:
        stream.write("interrupted: the last row holds what was measured so far\n")
    stream.writelines(f"{line}\n" for line in _summary(comparison))
    if comparison.dirty_log:
        stream.writelines(f"logs: {line}\n" for line in _log_claims(comparison))
    stream.write(verdict(comparison) + "\n")


def _summary(comparison: Comparison) -> list[str]:
    """What went wrong, with which designs nothing did, and which of these was cheapest; nothing for one design."""
    found = summary(comparison)
    if len(found.clean) + len(found.unjudged) + len(found.wrong) < 2:
        return []
    lines = [f"wrong: {design}: {what}" for design, what in found.wrong.items()]
    if found.clean:
        lines.append(f"nothing seen to go wrong, one instant wherever both sides were seen: {', '.join(found.clean)}")
    if found.unjudged:
        lines.append(f"nothing seen to go wrong, no update seen from both sides: {', '.join(found.unjudged)}")
    lines += [
        f"cheapest of these at {vcpus} vCPU{'s' * (vcpus != 1)}: {update} (median update), "
        f"{stalls} (vCPUs kept waiting)"
        for vcpus, (update, stalls) in found.cheapest.items()
    ]
    return lines


def _log_claims(comparison: Comparison) -> list[str]:
    """Which designs claim that every write is in a log, whether that held, and whether the load could show it."""
    rows: dict[str, int] = {}
    for row in comparison.rows:
        if not row.broken and row.replays and find(row.design).claims_logs:
            rows[row.design] = rows.get(row.design, 0) + row.dropped + row.unlogged
    held = [design for design, lost in rows.items() if not lost]
    lines = [
        f"{design} claims that every write is in a log: {lost} pages are not" for design, lost in rows.items() if lost
    ]
    if held:
        what = "every write was in a log handed to the caller, as claimed"
        if not all(row.measures("dropped") for row in comparison.rows):
            what = "each page was as logs had it in the end, as claimed (a write whose page is logged again is unseen)"
        lines.append(f"{what}: {', '.join(held)}")
    if not comparison.logs_strong_enough:
        lines.append(
            "no design lost a write, so this run shows nothing of those that claim it: more --repeat or --vcpus"
        )
    return lines


def _private(comparison: Comparison) -> list[str]:
    """How many private pages each design took from the guest, if there are any; once for each design."""
    removed: dict[str, int] = {}
    for row in comparison.rows:
        replays = max(1.0, row.transactions / comparison.steps) if comparison.steps else 1.0
        removed[row.design] = max(removed.get(row.design, 0), round(row.counts.private_zaps / replays))
    if not any(removed.values()):
        return []
    told = ", ".join(f"{design} {count}" for design, count in removed.items())
    return [f"  private pages removed, at most in a replay (a TDX guest loses what is in them): {told}\n"]


def _witness(row: Row, unit: str) -> str:
    """The two accesses that contradict each other, of the first update of a row that had no one instant."""
    assert row.witness is not None
    lines = f"lines {row.witness['first_line']}-{row.witness['last_line']}"
    new, old = row.witness["witness"]
    return (
        f"  no one instant: {row.design}, {row.vcpus} vCPUs, {lines}: {old['who']} began to access {old['where']} "
        f"{old['start'] - new['end']} {unit} after {new['who']} had seen new at {new['where']}, and saw old\n"
    )


def design_tables(comparison: Comparison) -> list[DesignTable]:
    """What vCPUs saw, what it cost, what the updates did."""
    rows = comparison.rows
    names = ("log", *(name for name, _ in LOGS), "logs, mean ± sd")
    return [
        DesignTable("What vCPUs saw", tuple(name for name, _ in SEEN), rows, [_seen(row) for row in rows]),
        *([DesignTable("What logs had", names, rows, [_logs(row) for row in rows])] if comparison.dirty_log else []),
        DesignTable("What it cost", COST, rows, [_cost(row) for row in rows]),
        DesignTable("What the updates did, a replay", WORK, rows, [_work(row, comparison.steps) for row in rows]),
    ]


def _unless(row: Row, name: str, text: str, seen: int = 0) -> str:
    """``text``, or "-" where the engine cannot measure ``name`` and nothing was ``seen`` of it all the same."""
    return text if row.measures(name) or seen else "-"


def _seen(row: Row) -> list[str]:
    return [
        str(row.inside),
        str(row.inside_changed),
        bad(row.holes),
        bad(row.killed),
        str(row.answered),
        bad(row.lost),
        bad(row.wrong),
        _unless(row, "stale", bad(row.stale + row.refused + row.strange), row.strange),
        _unless(row, "torn", f"{bad(row.torn)} of {row.instants}"),
        f"[bold red]{row.one_instant}[/]" if row.one_instant == Verdict.FAIL.value else row.one_instant,
    ]


def _logs(row: Row) -> list[str]:
    return [
        find(row.design).logs,
        str(row.logged),
        str(row.handed_back),
        _unless(row, "dropped", bad(row.dropped)),
        bad(row.unlogged),
        _spread(row.log_ns),
    ]


def _spread(spread: Spread) -> str:
    return f"{format_ns(spread.mean)} ± {format_ns(spread.deviation)}" if spread.count else "-"


def _median(spread: Spread) -> str:
    return format_ns(spread.median) if spread.count else "-"


def _cost(row: Row) -> list[str]:
    stalls = (row.vcpu_stall_median_ns, row.vcpu_stall_p99_ns, row.vcpu_stall_worst_ns)
    return [
        _median(row.update_ns),
        _spread(row.update_ns),
        _spread(row.trace_ns),
        str(row.vcpu_stalls),
        *(format_ns(stall) if row.vcpu_stalls else "-" for stall in stalls),
        _median(row.one_kick_ns),
    ]


def _work(row: Row, steps: int) -> list[str]:
    replays = max(1.0, row.transactions / steps) if steps else 1.0
    counts = row.counts

    def count(name: str) -> str:
        return _unless(row, f"counts.{name}", f"{getattr(counts, name) / replays:.0f}")

    def duration(name: str) -> str:
        return _unless(row, f"counts.{name}", format_ns(getattr(counts, name) / replays))

    return [
        *map(count, ("swaps", "srcu_waits", "kicks", "flushes", "pauses", "ranges_in_flux", "zaps")),
        _unless(row, "refaults", f"{row.refaults / replays:.0f}"),
        _unless(row, "table_pages", str(row.table_pages)),
        count("slept"),
        *map(duration, ("lock_ns", "edit_ns", "request_ns", "acks_ns", "grace_ns")),
    ]
