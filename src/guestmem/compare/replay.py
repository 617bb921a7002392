"""One row of the table: a plan replayed, again and again, by one design on one engine, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..designs import Design, pause
from ..engines import Access, Load, MeasuredEngine
from ..engines.stalls import percentile
from ..errors import CapabilityError, MemslotError
from ..memslots import Change
from .counters import Counters
from .plan import Plan
from .result import Row, Spread

__all__ = ["replay"]

_clock = time.perf_counter_ns
_NEVER = (1 << 64) - 1


def replay(
    plan: Plan,
    design: Design,
    engine: MeasuredEngine,
    *,
    access: Access,
    repeat: int,
    interval_s: float,
    stopped: Callable[[], bool] = lambda: False,
    advanced: Callable[[], object] = lambda: None,
    stepped: Callable[[], object] = lambda: None,
) -> Row:
    """Replay ``plan`` ``repeat`` times with ``design`` on a fresh ``engine``, whose vCPUs keep touching memory.

    ``stopped`` is asked between transactions; ``stepped`` is called after each, ``advanced`` after each replay.
    """
    apply = design.prepare(engine)
    row = Row(design.name, engine.vcpus, engine.cores, broken=design.broken, unmeasured=sorted(engine.unmeasured))
    engine.set_access(access)
    counted = Counters(plan)
    updates: list[float] = []
    totals: list[float] = []
    kicks: list[float] = []
    engine.start()
    try:
        while row.replays < repeat and not stopped():
            total = 0.0
            for step in plan.steps:
                if stopped():
                    break
                _note_instant(row, engine, step.load)
                counted.step_begins(step)
                time.sleep(interval_s)
                took = _clock()
                engine.kick()
                kicks.append(_clock() - took)
                before = engine.counts.copy()
                with engine.window():
                    took = _clock()
                    try:
                        apply(engine, step.changes)
                    except (CapabilityError, MemslotError) as error:
                        row.refusals.append(f"lines {step.first_line}-{step.last_line}: {error}")
                        pause.apply(engine, step.changes)  # the next steps stand on this one
                    took = _clock() - took
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
            _note_instant(row, engine, Load())
            counted.start_over()
            _forget(engine, plan)
    finally:
        engine.stop()
    counted.look()
    row.update_ns, row.trace_ns, row.one_kick_ns = Spread.of(updates), Spread.of(totals), Spread.of(kicks)
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


def _note_instant(row: Row, engine: MeasuredEngine, load: Load) -> None:
    """Give the vCPUs their next load, and see from what they report of the last one whether it had one instant."""
    reports = [report for report in engine.set_load(load) if report is not None]
    last_old = max((report[0] for report in reports), default=0)
    first_new = min((report[1] for report in reports), default=_NEVER)
    if last_old and first_new != _NEVER:
        row.instants += 1
        row.torn += last_old > first_new


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
