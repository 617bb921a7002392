"""When each vCPU was inside the guest, as far as a trace tells.

KVM says so with ``KVM_RUN`` (strace) and with its tracepoints ``kvm_entry``, ``kvm_exit`` and ``kvm_userspace_exit``
(Linux ``include/trace/events/kvm.h``, ``arch/x86/kvm/trace.h``). A stretch inside the guest is half-open,
``[entry, exit)``, in seconds of the trace's own clock.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from dataclasses import dataclass

from ..errors import TraceError

__all__ = ["RunState", "RunStateRecorder", "Vcpu"]


@dataclass(frozen=True, slots=True)
class Vcpu:
    """A vCPU: the thread that runs it, and its number where the trace tells it.

    >>> str(Vcpu(21671, 0)), str(Vcpu(21671))
    ('vCPU 0 (thread 21671)', 'vCPU thread 21671')
    """

    thread: int
    index: int | None = None

    def __str__(self) -> str:
        return f"vCPU thread {self.thread}" if self.index is None else f"vCPU {self.index} (thread {self.thread})"


class RunState:
    """Per vCPU, the sorted and disjoint stretches in which it was inside the guest.

    ``first`` and ``last`` are the times between which the trace knows; ``source`` says where the knowledge is from,
    ``lost`` how many times the recorder dropped events (then absence proves nothing).

    >>> state = RunState({Vcpu(7, 0): [(1.0, 2.0), (3.0, 4.0)]}, first=0.0, last=5.0)
    >>> state.inside(2.0, 2.9), state.inside(2.5, 3.0), state.inside(3.5, 3.5)
    ((), (Vcpu(thread=7, index=0),), (Vcpu(thread=7, index=0),))
    >>> state.inside(1.5, 3.5, throughout=True)
    ()
    """

    __slots__ = ("_ends", "_starts", "first", "last", "lost", "source")

    def __init__(
        self,
        stretches: dict[Vcpu, list[tuple[float, float]]],
        *,
        first: float,
        last: float,
        source: str = "",
        lost: int = 0,
    ) -> None:
        self._starts = {vcpu: array("d", [start for start, _ in each]) for vcpu, each in stretches.items()}
        self._ends = {vcpu: array("d", [end for _, end in each]) for vcpu, each in stretches.items()}
        self.first, self.last, self.source, self.lost = first, last, source, lost

    @classmethod
    def from_arrays(
        cls,
        starts: dict[Vcpu, array[float]],
        ends: dict[Vcpu, array[float]],
        *,
        first: float,
        last: float,
        source: str,
        lost: int,
    ) -> RunState:
        """The run state whose stretches are already in sorted arrays; they are kept, not copied."""
        state = cls({}, first=first, last=last, source=source, lost=lost)
        state._starts, state._ends = starts, ends
        return state

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """All vCPUs that were ever inside, by thread."""
        return tuple(sorted(self._starts, key=lambda vcpu: vcpu.thread))

    @property
    def stretches(self) -> int:
        """How many stretches inside the guest are known."""
        return sum(map(len, self._starts.values()))

    def intervals(self, vcpu: Vcpu) -> tuple[tuple[float, float], ...]:
        """All stretches ``[entry, exit)`` of one vCPU, in order."""
        return tuple(zip(self._starts[vcpu], self._ends[vcpu], strict=True))

    def inside(self, start: float, end: float, *, throughout: bool = False) -> tuple[Vcpu, ...]:
        """The vCPUs that were inside the guest at some moment of the closed ``[start, end]``; () if none was.

        With ``throughout``, only those that were inside during all of it. O(log n) for each vCPU.
        """
        return tuple(vcpu for vcpu in self.vcpus if self._was_inside(vcpu, start, end, throughout=throughout))

    def _was_inside(self, vcpu: Vcpu, start: float, end: float, *, throughout: bool) -> bool:
        starts, ends = self._starts[vcpu], self._ends[vcpu]
        if throughout:
            i = bisect_right(starts, start) - 1
            return i >= 0 and ends[i] > end
        i = bisect_right(ends, start)  # the first stretch that ends after `start`
        return i < len(ends) and starts[i] <= end

    def covers(self, start: float, end: float) -> bool:
        """Whether the trace knows about all of ``[start, end]``."""
        return self.first <= start and end <= self.last

    def shifted(self, offset: float) -> RunState:
        """The same with ``offset`` seconds added to every time: from another clock to this one. O(n)."""
        return RunState.from_arrays(
            {vcpu: array("d", [time + offset for time in each]) for vcpu, each in self._starts.items()},
            {vcpu: array("d", [time + offset for time in each]) for vcpu, each in self._ends.items()},
            first=self.first + offset,
            last=self.last + offset,
            source=self.source,
            lost=self.lost,
        )

    def __str__(self) -> str:
        count = len(self._starts)
        lost = f", events were lost {self.lost} times" if self.lost else ""
        return f"{count} vCPU{'s' * (count != 1)}, {self.stretches} stretches in the guest, from {self.source}{lost}"


class RunStateRecorder:
    """Takes what readers learn about vCPUs, and makes a RunState of it."""

    __slots__ = ("_ends", "_index", "_starts", "first", "last", "lost", "source")

    def __init__(self) -> None:
        self._starts: dict[int, array[float]] = {}
        self._ends: dict[int, array[float]] = {}
        self._index: dict[int, int] = {}
        self.first: float | None = None
        self.last: float | None = None
        self.lost = 0
        self.source = ""

    def saw(self, time: float) -> None:
        """Something was recorded at ``time``: the trace knows at least until then."""
        if self.first is None or time < self.first:
            self.first = time
        if self.last is None or time > self.last:
            self.last = time

    def number(self, thread: int, index: int) -> None:
        """``thread`` runs vCPU number ``index``."""
        self._index[thread] = index

    def vcpu(self, thread: int) -> None:
        """``thread`` is a vCPU's, though it may never have been inside."""
        self._starts.setdefault(thread, array("d"))
        self._ends.setdefault(thread, array("d"))

    def stretch(self, thread: int, start: float, end: float) -> None:
        """The vCPU was inside during ``[start, end)``; stretches of one thread come in order."""
        self.saw(start)
        self.saw(end)
        self.vcpu(thread)
        starts, ends = self._starts[thread], self._ends[thread]
        if ends and start < ends[-1]:  # stamps of one thread that step back: keep the stretches disjoint
            start = ends[-1]
        if end > start:
            starts.append(start)
            ends.append(end)

    def finish(self, path: str) -> RunState | None:
        """All that was taken, or None if no vCPU was seen.

        Raises TraceError if one vCPU number was inside on two threads at once: then the trace is of two VMs.
        """
        if self.first is None or self.last is None or not self._starts:
            return None
        vcpus = {thread: Vcpu(thread, self._index.get(thread)) for thread in self._starts}
        state = RunState.from_arrays(
            {vcpus[thread]: each for thread, each in self._starts.items()},
            {vcpus[thread]: each for thread, each in self._ends.items()},
            first=self.first,
            last=self.last,
            source=self.source,
            lost=self.lost,
        )
        _refuse_two_vms(state, path)
        return state


def _refuse_two_vms(state: RunState, path: str) -> None:
    by_index: dict[int, list[Vcpu]] = {}
    for vcpu in state.vcpus:
        if vcpu.index is not None:
            by_index.setdefault(vcpu.index, []).append(vcpu)
    for index, same in by_index.items():
        stretches = sorted((start, end, vcpu.thread) for vcpu in same for start, end in state.intervals(vcpu))
        for (_, end, thread), (start, _, other) in itertools.pairwise(stretches):
            if start < end and thread != other:
                raise TraceError(
                    f"vCPU {index} is inside the guest on threads {thread} and {other} at once, at {start:.6f}: "
                    "the run state is of two VMs; record one",
                    path=path,
                )
