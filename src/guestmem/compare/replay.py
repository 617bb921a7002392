"""One row of the table: a plan replayed, again and again, by one design on one engine, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from ..designs import Design, pause
from ..engines import Access as Pattern
from ..engines import Load, LoadReport, MeasuredEngine
from ..engines.stalls import percentile
from ..errors import CapabilityError, MemslotError
from ..history import Access, Verdict, judge
from ..memslots import Change
from ..units import U64_MAX
from .counters import Counters
from .logs import logged_engine
from .plan import Plan, Step
from .result import Row, Spread

__all__ = ["accesses_of_reports", "replay"]

_clock = time.perf_counter_ns


def replay(
    plan: Plan,
    design: Design,
    engine: MeasuredEngine,
    *,
    access: Pattern,
    repeat: int,
    interval_s: float,
    stopped: Callable[[], bool] = lambda: False,
    advanced: Callable[[], object] = lambda: None,
    stepped: Callable[[], object] = lambda: None,
) -> Row:
    """Replay ``plan`` ``repeat`` times with ``design`` on a fresh ``engine``, whose vCPUs keep touching memory.

    ``stopped`` is asked between transactions; ``stepped`` is called after each, ``advanced`` after each replay. With
    ``plan.dirty_log`` the logs are kept as a VMM that migrates its guest keeps them (``logs``).
    """
    logged = None
    if plan.dirty_log:
        logged = logged_engine(engine, plan, keeps=design.keeps_logs)
    apply = design.prepare(engine)
    row = Row(design.name, engine.vcpus, engine.cores, broken=design.broken, unmeasured=sorted(engine.unmeasured))
    engine.set_access(access)
    counted = Counters(plan)
    updates: list[float] = []
    totals: list[float] = []
    kicks: list[float] = []
    logs: list[float] = []
    last: Step | None = None
    engine.start()
    try:
        while row.replays < repeat and not stopped():
            total = 0.0
            for step in plan.steps:
                if stopped():
                    break
                counted.step_begins(step)  # before its load: what was given back meanwhile may be touched by that first
                _note_instant(row, engine, step.load, last)
                last = step
                time.sleep(interval_s)
                took = _clock()
                engine.kick()
                kicks.append(_clock() - took)
                before = engine.counts.copy()
                target: MeasuredEngine = engine if logged is None else logged.of(step.changes)
                log_ns = 0 if logged is None else logged.ns
                with engine.window():
                    took = _clock()
                    try:
                        apply(target, step.changes)
                    except (CapabilityError, MemslotError) as error:
                        row.refusals.append(f"lines {step.first_line}-{step.last_line}: {error}")
                        pause.apply(target, step.changes)  # the next steps stand on this one
                    took = _clock() - took
                if logged is not None:
                    logs.append(logged.ns - log_ns)
                    took -= logged.ns - log_ns
                row.counts += engine.counts - before
                row.table_pages = max(row.table_pages, engine.table_pages)
                counted.step_ended(step)
                updates.append(took)
                total += took
                row.transactions += 1
                stepped()
            else:
                totals.append(total)
                row.replays += 1
                advanced()
            _note_instant(row, engine, Load(), last)
            last = None
            counted.start_over()
            if logged is None:
                _forget(engine, plan)
                continue
            _forget(logged, plan)  # the last logs are taken, while no vCPU runs
            row.unlogged += logged.copied.missing()
    finally:
        engine.stop()
    counted.look()
    row.update_ns, row.trace_ns, row.one_kick_ns = Spread.of(updates), Spread.of(totals), Spread.of(kicks)
    if logged is not None:
        row.log_ns = Spread.of(logs)
        row.logged, row.handed_back, row.dropped = logged.copied.pages, logged.handed_back, logged.dropped
    _sum_up(row, engine, counted)
    return row


def _forget(engine: MeasuredEngine, plan: Plan) -> None:
    """Delete all slots of the plan while no vCPU runs; not counted."""
    counts = engine.counts
    engine.counts = counts.copy()
    engine.pause()
    for as_id, slot in sorted({(change.as_id, change.slot) for step in plan.steps for change in step.changes}):
        if engine.slot(slot, as_id) is not None:
            engine.set_memory_region(Change(slot=slot, as_id=as_id))
    engine.resume()
    engine.counts = counts


def _note_instant(row: Row, engine: MeasuredEngine, load: Load, step: Step | None) -> None:
    """Give the vCPUs their next load, and judge by what they report of ``step`` whether it had one instant."""
    judgement = judge(accesses_of_reports(engine.set_load(load)))
    if judgement.verdict is Verdict.UNKNOWN or step is None:
        return
    row.instants += 1
    if judgement.verdict is Verdict.FAIL:
        row.torn += 1
        if row.witness is None:
            row.witness = {"first_line": step.first_line, "last_line": step.last_line, **judgement.as_dict()}


def accesses_of_reports(reports: Iterable[LoadReport | None]) -> Iterator[Access]:
    """What vCPUs report of an update, as a history for ``judge``: of each vCPU the two accesses that bind most.

    Of all that saw old only the start of the last matters, of all that saw new the end of the first.

    >>> from guestmem.engines import LoadReport
    >>> judge(accesses_of_reports([LoadReport(7, 0x1000), LoadReport(first_new=5, first_new_gpa=0x2000)])).reason
    'vCPU 0 saw update 1 not done from 7 on, after vCPU 1 had seen it done until 5'
    """
    for vcpu, report in enumerate(reports):
        if report is None:
            continue
        who = f"vCPU {vcpu}"
        if report.last_old:
            yield Access.old(report.last_old, report.last_old, who=who, where=f"{report.last_old_gpa:#x}")
        if report.first_new != U64_MAX:
            yield Access.new(report.first_new, report.first_new, who=who, where=f"{report.first_new_gpa:#x}")


def _sum_up(row: Row, engine: MeasuredEngine, counted: Counters) -> None:
    every = engine.vcpu_counts()
    total = {name: sum(counts[name] for counts in every) for name in every[0]}
    histogram = [sum(column) for column in zip(*(counts.histogram for counts in every), strict=True)]
    row.vcpu_stalls = sum(histogram)
    row.vcpu_stall_worst_ns = max(counts["stall_worst"] for counts in every)
    # The histogram gives the middle of a bucket, which may lie above the worst.
    row.vcpu_stall_median_ns = min(percentile(histogram, 0.5), row.vcpu_stall_worst_ns)
    row.vcpu_stall_p99_ns = min(percentile(histogram, 0.99), row.vcpu_stall_worst_ns)
    row.accesses, row.inside, row.inside_changed = total["accesses"], total["inside"], total["inside_changed"]
    row.holes = total["holes_read"] + total["holes_write"]
    row.killed = total["killed_fetches"]
    row.answered = total["answered_reads"] + total["answered_writes"]
    row.lost = total["writes"] + total["holes_write"] + total["answered_writes"] - counted.written()
    row.wrong = counted.wrong
    row.refaults = total.get("refaults", 0)
    row.stale, row.refused, row.strange = total.get("stale", 0), total.get("refused_writes", 0), total["strange"]
    row.vcpu_counts = [dict(counts) for counts in every]
