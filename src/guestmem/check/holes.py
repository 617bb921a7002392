"""Frames that a transaction took away and gave back, and whether a vCPU was in the guest meanwhile.

A *hole* is a window in which frames that had memory before a transaction, and have memory after it, had none. KVM
opens it with the delete of a slot and closes it with the create of the slot that has the frames again; a vCPU that
fetches an instruction there is killed, other accesses become MMIO (Linux ``virt/kvm/kvm_main.c``; the debate of 2022
about KVM_SET_USER_MEMORY_REGION_LIST). A move whose new range overlaps its old one is a hole inside one call: x86 lets
page faults wait there, but KVM's own accesses (emulator, page walks), and all of arm64's, find no memory.

Host memory that two slots share is legal and plays no part here; only guest frames do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..units import PAGE_SHIFT
from .missing import walk
from .primitives import AtomicSet, atomic_sets
from .spans import merged
from .verdict import judge

if TYPE_CHECKING:
    from ..traces.timeline import RecordedChange, RunState, Transaction, Vcpu
    from .missing import Walk
    from .rules import Rule, Verdict

__all__ = ["Hole", "HoleRange", "hole_of", "walk_of"]


@dataclass(frozen=True, slots=True)
class HoleRange:
    """Frames ``[start_gfn, end_gfn)`` that one change took away and another gave back.

    ``same_host_memory``: whether the host addresses behind them are those of before.
    """

    start_gfn: int
    end_gfn: int
    removed: RecordedChange
    restored: RecordedChange
    same_host_memory: bool

    @property
    def npages(self) -> int:
        """Number of frames."""
        return self.end_gfn - self.start_gfn

    @property
    def duration(self) -> float | None:
        """Seconds from the delete's stamp to the create's; 0 inside one call, None without stamps."""
        if self.removed.time is None or self.restored.time is None:
            return None
        return self.restored.time - self.removed.time

    def as_dict(self) -> dict[str, Any]:
        """The range as JSON takes it; addresses and sizes in bytes, times in seconds."""
        return {
            "gpa": self.start_gfn << PAGE_SHIFT,
            "size": self.npages << PAGE_SHIFT,
            "removed_line": self.removed.line,
            "restored_line": self.restored.line,
            "seconds": self.duration,
            "same_host_memory": self.same_host_memory,
        }


@dataclass(frozen=True, slots=True)
class Hole:
    """All that one transaction took away and gave back.

    ``ranges`` are sorted by frame, one for each pair of a change that took away and one that gave back; ``vcpus`` are
    those that ``reason`` is about: what the verdict rests on in words, by which ``rule`` (``rules.RULES``).
    """

    transaction: int
    as_id: int
    ranges: tuple[HoleRange, ...]
    atomic_sets: tuple[AtomicSet, ...]
    verdict: Verdict
    vcpus: tuple[Vcpu, ...]
    reason: str
    rule: Rule

    @property
    def frames(self) -> tuple[tuple[int, int], ...]:
        """The frames ``[start_gfn, end_gfn)``, merged and sorted."""
        return merged((each.start_gfn, each.end_gfn) for each in self.ranges)

    @property
    def npages(self) -> int:
        """How many frames were missing."""
        return sum(end - start for start, end in self.frames)

    @property
    def nbytes(self) -> int:
        """How many bytes were missing."""
        return self.npages << PAGE_SHIFT

    @property
    def first_line(self) -> int:
        """Line of the first delete whose frames come back."""
        return min(each.removed.line for each in self.ranges)

    @property
    def last_line(self) -> int:
        """Line of the last create that brings frames back."""
        return max(each.restored.line for each in self.ranges)

    @property
    def thread(self) -> int | None:
        """The thread that issued the changes."""
        return self.ranges[0].removed.thread

    @property
    def start(self) -> float | None:
        """Stamp of the first delete, in seconds."""
        return min((each.removed.time for each in self.ranges if each.removed.time is not None), default=None)

    @property
    def end(self) -> float | None:
        """Stamp of the last create, in seconds."""
        return max((each.restored.time for each in self.ranges if each.restored.time is not None), default=None)

    @property
    def duration(self) -> float | None:
        """Seconds from the first delete to the last create; None without stamps."""
        start, end = self.start, self.end
        return None if start is None or end is None else end - start

    @property
    def same_host_memory(self) -> bool | None:
        """True if all of the memory came back the same, False if none did, None if some."""
        answers = {each.same_host_memory for each in self.ranges}
        return answers.pop() if len(answers) == 1 else None

    def as_dict(self) -> dict[str, Any]:
        """The hole as JSON takes it; addresses and sizes in bytes, times in seconds."""
        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "rule": self.rule.name,
            "vcpus": [{"thread": vcpu.thread, "index": vcpu.index} for vcpu in self.vcpus],
            "first_line": self.first_line,
            "last_line": self.last_line,
            "thread": self.thread,
            "address_space": self.as_id,
            "transaction": self.transaction,
            "start": self.start,
            "end": self.end,
            "seconds": self.duration,
            "bytes": self.nbytes,
            "same_host_memory": {True: "all", False: "none", None: "some"}[self.same_host_memory],
            "frames": [{"gpa": start << PAGE_SHIFT, "size": (end - start) << PAGE_SHIFT} for start, end in self.frames],
            "ranges": [each.as_dict() for each in self.ranges],
            "atomic_sets": [each.as_dict() for each in self.atomic_sets],
        }


def walk_of(transaction: Transaction) -> Walk | None:
    """What ``transaction`` took away and gave back by frame, or None if it took nothing away. O(n log n)."""
    changes = transaction.changes
    if changes[0].old is None and all(each.removed is None for each in changes):
        return None
    return walk(changes)


def hole_of(
    transaction: Transaction, walked: Walk, run_state: RunState | None, resolution: float = 1e-6
) -> Hole | None:
    """The hole that ``transaction`` made, or None; its stamps are off by ``resolution``. O(n log n) in its changes."""
    changes = transaction.changes
    returned = walked.returned
    if not returned:
        return None
    windows = sorted({(each.removed, each.restored) for each in returned})
    verdict, rule, vcpus, reason = judge(changes, windows, run_state, resolution)
    ranges = tuple(
        HoleRange(each.start_gfn, each.end_gfn, changes[each.removed], changes[each.restored], each.same_host_memory)
        for each in returned
    )
    sets = atomic_sets(changes, walked)
    return Hole(transaction.index, transaction.as_id, ranges, sets, verdict, vcpus, reason, rule)
