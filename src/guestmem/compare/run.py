"""All rows: every design at every number of vCPUs, on one plan, with the broken design beside each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..designs import DESIGNS, Design, control, find
from ..engines import Access, MeasuredEngine, measured_engine
from ..errors import UsageError
from ..traces import Timeline
from .plan import plan
from .replay import replay
from .result import Comparison

__all__ = ["DEFAULT_INTERVAL_MS", "DEFAULT_REPEAT", "DEFAULT_VCPUS", "compare"]

DEFAULT_VCPUS = (1, 2, 4, 8)
DEFAULT_REPEAT = 20
DEFAULT_INTERVAL_MS = 2.0
MOST_MS = 60_000


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
    advanced: Callable[[str], object] = lambda _row: None,
) -> Comparison:
    """Replay ``timeline`` with each of ``designs`` (all unless named) at each number of ``vcpus``.

    ``engine`` is a name of ``engines.ENGINES``; designs that it cannot do are left out, unless named: CapabilityError.
    The recorded pauses are not waited for: ``interval_ms`` passes between transactions. The broken design is always
    among them; a comparison that does not catch it (``strong_enough``) shows nothing. ``stopped`` is asked often;
    when it says so, what was measured so far is returned. ``advanced`` is told after each replay which row it was of.

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
    steps = plan(timeline)
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
    )

    def fresh(count: int) -> MeasuredEngine:
        return measured_engine(
            engine,
            count,
            cores=cores,
            address_spaces=steps.address_spaces,
            arch=arch,
            slow_vcpu_ns=round(slow_vcpu_ms * 1e6),
            seed=seed,
        )

    try:
        with fresh(1) as probe:
            chosen = _chosen(designs, probe)
            result.host, result.control = probe.host, control(probe).name
        for design in chosen:  # what is compiled on first use is not measured
            if not stopped():
                with fresh(1) as warm:
                    replay(steps, design, warm, access=access or Access(), repeat=1, interval_s=0, stopped=stopped)
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
                        advanced=lambda name=name: advanced(name),  # type: ignore[misc]  # mypy: no default in a lambda
                    )
                result.rows.append(row)
    finally:
        steps.close()
    result.interrupted = stopped()
    return result


def _chosen(names: Sequence[str], engine: MeasuredEngine) -> list[Design]:
    """The designs to run: those named, or all that the engine can do, and the control."""
    able = [design for design in DESIGNS if not design.needs & ~engine.capabilities]
    chosen = [find(name) for name in names] or [design for design in able if not design.broken]
    if (must := control(engine)) not in chosen:
        chosen.append(must)
    return chosen
