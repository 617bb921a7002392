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
from typing import TYPE_CHECKING

from ..errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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

    __slots__ = ("_vcpus", "first", "last", "lost", "source")

    def __init__(
        self,
        stretches: Mapping[Vcpu, Iterable[tuple[float, float]]],
        *,
        first: float,
        last: float,
        source: str = "",
        lost: int = 0,
    ) -> None:
        self._vcpus = []
        for vcpu in sorted(stretches, key=lambda vcpu: vcpu.thread):
            starts, ends = array("d"), array("d")
            for start, end in stretches[vcpu]:
                starts.append(start)
                ends.append(end)
            self._vcpus.append((vcpu, starts, ends))
        self.first, self.last, self.source, self.lost = first, last, source, lost

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """All vCPUs that are known, by thread."""
        return tuple(vcpu for vcpu, _, _ in self._vcpus)

    @property
    def stretches(self) -> int:
        """How many stretches inside the guest are known."""
        return sum(len(starts) for _, starts, _ in self._vcpus)

    def intervals(self, vcpu: Vcpu) -> tuple[tuple[float, float], ...]:
        """All stretches ``[entry, exit)`` of one vCPU, in order; () if it is not known."""
        return tuple(
            pair for each, starts, ends in self._vcpus if each == vcpu for pair in zip(starts, ends, strict=True)
        )

    def inside(self, start: float, end: float, *, throughout: bool = False) -> tuple[Vcpu, ...]:
        """The vCPUs that were inside the guest at some moment of the closed ``[start, end]``; () if none was.

        With ``throughout``, only those that were inside during all of it. O(log n) for each vCPU.
        """
        found = []
        for vcpu, starts, ends in self._vcpus:
            i = bisect_right(ends, start)  # the first stretch that ends after `start`
            if i < len(ends) and (starts[i] <= start and ends[i] > end if throughout else starts[i] <= end):
                found.append(vcpu)
        return tuple(found)

    def covers(self, start: float, end: float) -> bool:
        """Whether the trace knows about all of ``[start, end]``."""
        return self.first <= start and end <= self.last

    def shifted(self, offset: float) -> RunState:
        """The same with ``offset`` seconds added to every time: from another clock to this one. O(n)."""
        return RunState(
            {
                vcpu: [(start + offset, end + offset) for start, end in zip(starts, ends, strict=True)]
                for vcpu, starts, ends in self._vcpus
            },
            first=self.first + offset,
            last=self.last + offset,
            source=self.source,
            lost=self.lost,
        )

    def __str__(self) -> str:
        vcpus, stretches = len(self._vcpus), self.stretches
        lost = f", events were lost {self.lost} times" if self.lost else ""
        counts = f"{vcpus} vCPU{'s' * (vcpus != 1)}, {stretches} stretch{'es' * (stretches != 1)} in the guest"
        return f"{counts}, from {self.source or 'elsewhere'}{lost}"


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
        state = RunState(
            {
                Vcpu(thread, self._index.get(thread)): zip(starts, self._ends[thread], strict=True)
                for thread, starts in self._starts.items()
            },
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
