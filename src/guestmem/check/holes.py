"""Frames that a transaction took away and gave back, and whether a vCPU was in the guest meanwhile.

A *hole* is a window in which frames that had memory before a transaction, and have memory after it, had none. KVM
opens it with the delete of a slot and closes it with the create of the slot that has the frames again; a vCPU that
fetches an instruction there is killed, other accesses become MMIO (Linux ``virt/kvm/kvm_main.c``; the debate of 2022
about KVM_SET_USER_MEMORY_REGION_LIST). A move whose new range overlaps its old one is a hole inside one call: x86 lets
page faults wait there, but KVM's own accesses (emulator, page walks), and all of arm64's, find no memory.

Host memory that two slots share is legal and plays no part here; only guest frames do.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from ..units import PAGE_SHIFT
from .judgement import Judgement
from .missing import walk
from .primitives import AtomicSet, atomic_sets
from .rules import RULES, Verdict
from .spans import merged

if TYPE_CHECKING:
    from ..traces.columns import Transactions
    from ..traces.timeline import RecordedChange, Vcpu
    from .missing import Returned
    from .plain_walks import PlainHoles
    from .rules import Rule

__all__ = ["Hole", "HoleRange", "Holes", "hole_of"]


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


def hole_of(transactions: Transactions, number: int, judgement: Judgement) -> Hole:
    """The hole that transaction ``number`` made, of which ``judgement`` says what a vCPU saw. O(n log n) in it."""
    changes, indices = transactions.changes, transactions.indices(number)
    walked = walk(changes, indices)
    assert walked is not None
    recorded = {index: changes[index] for index in indices}
    ranges = tuple(
        [
            HoleRange(start, end, recorded[removed], recorded[restored], same)
            for start, end, removed, restored, same in walked.returned
        ]
    )
    sets = atomic_sets(recorded, walked)
    verdict, rule, vcpus, reason = judgement
    return Hole(number, transactions.as_id(number), ranges, sets, verdict, vcpus, reason, rule)


class Holes(Sequence[Hole]):
    """All holes of a trace, in order; each is made when somebody asks for it, since there may be a hundred thousand.

    ``longest`` is the place of the one that lasted longest (without times, that
    took most memory), ``flag_changes`` are the places of those in which a frame came back with other flags.
    """

    __slots__ = ("_judgements", "_last", "_longest", "_numbers", "_same", "_transactions", "flag_changes", "longest")

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._numbers = array("Q")
        self._judgements: list[Judgement] = []
        self._last: Judgement | None = None
        """The last of a kind that was made once, as that of no run state."""
        self._same: dict[tuple[object, ...], Judgement] = {}
        """Those that say the same are one."""
        self._longest = (-1.0, -1)
        self.longest: int | None = None
        self.flag_changes: list[int] = []

    def add(self, number: int, returned: Sequence[Returned], judgement: Judgement) -> None:
        """Transaction ``number`` took away and gave back ``returned``."""
        changes = self._transactions.changes
        times = changes.time
        if len(returned) == 1:
            ((start, end, removed, restored, _),) = returned
            npages, seconds = end - start, times[restored] - times[removed]
        else:
            npages, taken, given = 0, math.inf, -math.inf
            for start, end, removed, restored, _ in returned:
                npages += end - start
                if not times[removed] >= taken:
                    taken = times[removed]
                if not times[restored] <= given:
                    given = times[restored]
            seconds = given - taken
        size = (seconds if seconds > 0 else 0.0, npages)  # without stamps: 0
        if size > self._longest:
            self._longest, self.longest = size, len(self._numbers)
        if changes.seen_flags:
            for _, _, removed, restored, _ in returned:
                if changes.made_by(changes.old[removed]).flags != changes.flags[restored]:
                    self.flag_changes.append(len(self._numbers))
                    break
        self._numbers.append(number)
        if judgement is self._last:
            self._judgements.append(judgement)
            return
        key = judgement.rule.name, judgement.reason, judgement.vcpus
        kept = self._same.setdefault(key, judgement)
        self._judgements.append(kept)
        self._last = kept

    def add_plain(self, plain: PlainHoles, judgement: Judgement) -> None:
        """Many at once, all of one judgement."""
        before = len(self._numbers)
        size, place = plain.longest
        if size > self._longest:
            self._longest, self.longest = size, before + place
        if self._transactions.changes.seen_flags:
            self.flag_changes += [before + i for i in plain.other_flags.nonzero()[0].tolist()]
        self._numbers.extend(range(plain.first, plain.first + len(plain)))
        kept = self._same.setdefault((judgement.rule.name, judgement.reason, judgement.vcpus), judgement)
        self._judgements += [kept] * len(plain)
        self._last = kept

    def packed(self) -> tuple[Any, ...]:
        """All that ``extend`` takes, as bytes can hold it."""
        by_name = [(verdict.value, rule.name, vcpus, reason) for verdict, rule, vcpus, reason in self._same.values()]
        place = {id(judgement): i for i, judgement in enumerate(self._same.values())}
        which = array("I", [place[id(judgement)] for judgement in self._judgements])
        return self._numbers, by_name, which, self._longest, self.longest, self.flag_changes

    def extend(self, packed: tuple[Any, ...]) -> None:
        """Add the holes of later transactions, as ``packed`` has them."""
        numbers, by_name, which, longest, place, flag_changes = packed
        before = len(self._numbers)
        judgements = []
        for verdict, name, vcpus, reason in by_name:
            judgement = Judgement(Verdict(verdict), RULES[name], vcpus, reason)
            judgements.append(self._same.setdefault((name, reason, vcpus), judgement))
        if place is not None and longest > self._longest:
            self._longest, self.longest = longest, before + place
        self._numbers.extend(numbers)
        self._judgements += map(judgements.__getitem__, which)
        self.flag_changes += [before + each for each in flag_changes]

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """How many there are of each verdict. O(n)."""
        counted = Counter(map(id, self._judgements))
        found = [(each.verdict, counted[id(each)]) for each in self._same.values()]
        return {verdict: sum(count for each, count in found if each is verdict) for verdict in Verdict}

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Hole: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hole, ...]: ...
    def __getitem__(self, index: int | slice) -> Hole | tuple[Hole, ...]:
        if isinstance(index, slice):
            return tuple([self[i] for i in range(*index.indices(len(self)))])
        return hole_of(self._transactions, self._numbers[index], self._judgements[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list
