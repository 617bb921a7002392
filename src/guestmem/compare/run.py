"""All rows: every design at every number of vCPUs, on one plan, with the broken design beside each."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ..designs import DESIGNS, Design, control, find
from ..engines import Access, Capability, MeasuredEngine, measured_engine
from ..errors import CapabilityError, UsageError
from ..traces import Timeline
from ..units import PAGE_SIZE
from .plan import Plan, plan
from .replay import replay
from .result import Comparison

__all__ = ["DEFAULT_INTERVAL_MS", "DEFAULT_REPEAT", "DEFAULT_VCPUS", "Workload", "compare"]

DEFAULT_VCPUS = (1, 2, 4, 8)
DEFAULT_REPEAT = 20
DEFAULT_INTERVAL_MS = 2.0
MOST_MS = 60_000
WARM_STEPS = 200
"""Transactions that each design does before anything is measured; fewer in a shorter trace."""


class Workload(NamedTuple):
    """How much there is to do: every design at every number of vCPUs, ``repeat`` replays of the trace each."""

    designs: int
    vcpus: int
    repeat: int
    transactions: int
    interval_ms: float
    step_ms: float = 0.5
    """For a transaction, the pause before it left out: assumed, or measured with one vCPU."""
    measured: bool = False

    @property
    def steps(self) -> int:
        """Transactions in all."""
        return self.designs * self.vcpus * self.repeat * self.transactions

    @property
    def seconds(self) -> float:
        """About how long it will take, compiling left out."""
        return self.steps * (self.interval_ms + self.step_ms) / 1e3


def compare(
    timeline: Timeline,
    *,
    vcpus: Sequence[int] = DEFAULT_VCPUS,
    designs: Sequence[str] = (),
    repeat: int = DEFAULT_REPEAT,
    seed: int = 1,
    interval_ms: float = DEFAULT_INTERVAL_MS,
    arch: str = "x86",
    slow_vcpu_ms: float = 0.0,
    access: Access | None = None,
    cores: int | None = None,
    engine: str = "soft",
    stopped: Callable[[], bool] = lambda: False,
    page_size: int = 0,
    dirty_log: bool = False,
    begins: Callable[[Workload], object] = lambda _workload: None,
    stepped: Callable[[str, float], object] = lambda _row, _share: None,
    advanced: Callable[[str], object] = lambda _row: None,
) -> Comparison:
    """Replay ``timeline`` with each of ``designs`` (all unless named) at each number of ``vcpus``.

    ``engine`` is a name of ``engines.ENGINES``; designs that it cannot do are left out, unless named: CapabilityError.
    The recorded pauses are not waited for: ``interval_ms`` passes between transactions. The broken design is always
    among them; a comparison that does not catch it (``strong_enough``) shows nothing. ``stopped`` is asked often;
    when it says so, what was measured so far is returned. ``page_size`` is the recorded guest's: see ``plan``.
    ``dirty_log``: slots log dirty pages, and every write has to be in a log that the caller was handed
    (Capability.DIRTY_LOGS or GET_DIRTY_LOG, else CapabilityError).

    ``begins`` is told twice how much there is to do: before anything is compiled, and, with a measured time for a
    transaction, when measuring begins. ``stepped`` is told after each transaction which row it was of (or that it is
    compiled for), and the share of all transactions that is done; ``advanced`` after each replay which row it was of.

    Raises UsageError for arguments that cannot be meant, TraceError comes from reading the trace.
    """
    for name in designs:
        find(name)
    for count in vcpus:
        if count < 1:
            raise UsageError(f"vcpus: {count} is not at least 1")
    if repeat < 1:
        raise UsageError(f"repeat: {repeat} is not at least 1")
    for what, milliseconds in (("interval", interval_ms), ("slow vCPU", slow_vcpu_ms)):
        if not 0 <= milliseconds <= MOST_MS:
            raise UsageError(f"{what}: {milliseconds:g} ms; 0 to {MOST_MS} are allowed")
    cores = cores or len(os.sched_getaffinity(0))
    with measured_engine(engine, 1, cores=cores, arch=arch) as probe:
        files = Capability.GUEST_MEMFD in probe.capabilities
        if dirty_log and not probe.capabilities & (Capability.DIRTY_LOGS | Capability.GET_DIRTY_LOG):
            raise CapabilityError(f"dirty log: engine {engine} has no logs that can be read; engine soft has")
    steps = plan(timeline, page_size=page_size, files=files, dirty_log=dirty_log)
    if arch == "x86" and steps.page_size > PAGE_SIZE:
        steps.close()
        raise UsageError(f"arch: x86 has pages of 4 KiB, this trace needs {steps.page_size >> 10} KiB: arm64 has them")
    result = Comparison(
        timeline.path,
        engine,
        arch,
        seed,
        repeat,
        interval_ms,
        cores,
        len(steps.steps),
        sum(len(step.changes) for step in steps.steps),
        slow_vcpu_ms=slow_vcpu_ms,
        notes=steps.notes,
        dirty_log=dirty_log,
    )

    def fresh(count: int) -> MeasuredEngine:
        made = measured_engine(
            engine,
            count,
            cores=cores,
            address_spaces=steps.address_spaces,
            arch=arch,
            slow_vcpu_ns=round(slow_vcpu_ms * 1e6),
            seed=seed,
        )
        if files:
            made.take_files(steps.bound.files)
        return made

    try:
        with fresh(1) as probe:
            chosen = _chosen(designs, probe)
            result.host, result.control = probe.host, control(probe).name
        work = Workload(len(chosen), len(vcpus), repeat, len(steps.steps), interval_ms)
        begins(work)
        begins(_warmed(chosen, steps, fresh, work, access or Access(), stopped, stepped))
        done = 0

        def step(name: str) -> None:
            nonlocal done
            done += 1
            stepped(name, min(1.0, done / max(1, work.steps)))

        for design in chosen:
            for count in vcpus:
                if stopped():
                    break
                name = f"{design.name}, {count} vCPU{'s' * (count > 1)}"
                with fresh(count) as fresh_engine:
                    row = replay(
                        steps,
                        design,
                        fresh_engine,
                        access=access or Access(),
                        repeat=repeat,
                        interval_s=interval_ms / 1e3,
                        stopped=stopped,
                        advanced=partial(advanced, name),
                        stepped=partial(step, name),
                    )
                result.rows.append(row)
    finally:
        steps.close()
    result.interrupted = stopped()
    return result


def _warmed(
    chosen: Sequence[Design],
    steps: Plan,
    fresh: Callable[[int], MeasuredEngine],
    work: Workload,
    access: Access,
    stopped: Callable[[], bool],
    stepped: Callable[[str, float], object],
) -> Workload:
    """Have each design do some of the trace, so that what is compiled on first use is not measured.

    Of a long trace, its first transactions, until each kind of change was there. Returns ``work`` with the median time
    of a transaction, pauses left out, over all designs.
    """
    few = replace(steps, steps=steps.steps[: max(WARM_STEPS, steps.kinds_until)])
    stamps: list[float] = []

    def step(name: str) -> None:
        stamps.append(time.monotonic())
        stepped(name, 0.0)

    for design in chosen:
        if not stopped():
            stepped(f"compiling {design.name}", 0.0)
            with fresh(1) as warm:
                told = partial(step, f"compiling {design.name}")
                replay(few, design, warm, access=access, repeat=1, interval_s=0, stopped=stopped, stepped=told)
    took = sorted(after - before for before, after in itertools.pairwise(stamps))
    return work._replace(step_ms=took[len(took) // 2] * 1e3 if took else 0.0, measured=True)


def _chosen(names: Sequence[str], engine: MeasuredEngine) -> list[Design]:
    """The designs to run: those named, or all that the engine can do, and the control."""
    able = [design for design in DESIGNS if not design.needs & ~engine.capabilities]
    for name in names:
        find(name).refuse_unless_able(engine)
    chosen = [find(name) for name in names] or [design for design in able if not design.broken]
    if (must := control(engine)) not in chosen:
        chosen.append(must)
    return chosen
