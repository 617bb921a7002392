"""Whether a vCPU was in the guest while memory was missing.

A trace stamps a call when it starts or when it has returned; KVM acts somewhere in between. So each window has a core,
in which the memory was missing for certain, and an outer bound, outside of which it was there for certain. A vCPU in
the guest during the core proves that it could see the hole; none in the guest within the bound proves the contrary.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..traces.timeline import RecordedChange, RunState, Vcpu

__all__ = ["Verdict", "judge"]


class Verdict(enum.Enum):
    """Whether a vCPU could see the hole.

    OPEN: one was in the guest while the memory was missing for certain. CLOSED: run state is known for the whole
    window, and none was in the guest. UNKNOWN: neither can be told.
    """

    OPEN = "open"
    CLOSED = "closed"
    UNKNOWN = "unknown"


def judge(
    changes: Sequence[RecordedChange], windows: Sequence[tuple[int, int]], run_state: RunState | None
) -> tuple[Verdict, tuple[Vcpu, ...], str]:
    """The verdict over all ``windows``, the vCPUs seen in the guest, and what the verdict rests on.

    A window is a pair of indices: the change that took memory away, the change that gave it back.
    O(windows · vCPUs · log stretches).
    """
    if run_state is None:
        return Verdict.UNKNOWN, (), "no run state"
    if any(each.time is None for each in changes):
        return Verdict.UNKNOWN, (), "no times"
    seen: dict[Vcpu, None] = {}
    doubt = ""
    for removed, restored in windows:
        core, (start, end) = core_and_bound(changes, removed, restored)
        inside = run_state.inside(*core) if core else ()
        if not inside and changes[removed].began is not None:
            inside = run_state.inside(start, end, throughout=True)
        seen.update(dict.fromkeys(inside))
        if inside or doubt:
            continue
        if not run_state.covers(start, end):
            doubt = f"run state is known from {run_state.first:.6f} to {run_state.last:.6f} only"
        elif run_state.lost:
            doubt = "events of the run state were lost"
        elif run_state.inside(start, end):
            doubt = "a vCPU came or went too close to the edge to tell"
    if seen:
        vcpus = tuple(sorted(seen, key=lambda vcpu: vcpu.thread))
        return Verdict.OPEN, vcpus, f"{', '.join(map(str, vcpus))} in the guest"
    if doubt:
        return Verdict.UNKNOWN, (), doubt
    return Verdict.CLOSED, (), "no vCPU was in the guest"


def core_and_bound(
    changes: Sequence[RecordedChange], removed: int, restored: int
) -> tuple[tuple[float, float] | None, tuple[float, float]]:
    """When the memory was missing for certain (None: no such moment is known), and the bound of when it can have been.

    The calls of a transaction follow one another in one thread: one has returned when the next one starts.
    """
    delete, create = changes[removed], changes[restored]
    assert delete.time is not None
    assert create.time is not None
    bound = delete.time, create.time if create.ended is None else create.ended
    if removed == restored:
        return None, bound
    start = delete.ended if delete.ended is not None else changes[removed + 1].began
    end = create.began if create.began is not None else changes[restored - 1].ended
    core = (start, end) if start is not None and end is not None and start <= end else None
    return core, bound
