"""The smallest sets of changes that would have to be atomic, and what each set is.

KVM knows only create, delete, move and flags; in 2022 Sean Christopherson asked which precise operations VMMs really
need, and named grow, truncate, split, merge and a toggle of READONLY. This says which of them a recorded transaction
was. Only changes of which one took frames away that the other gave back belong together: the observation of David
Hildenbrand's on which QEMU's inhibit condition rests.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..memslots.changes import ChangeKind
from ..memslots.slot import KVM_MEM_READONLY
from ..units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..traces.timeline import RecordedChange
    from .missing import Returned

__all__ = ["AtomicSet", "Primitive", "atomic_sets"]


class Primitive(enum.Enum):
    """What a set of changes amounts to; a set can be several at once. *Removed* and *added* are slots of the set.

    SPLIT: the frames of a removed slot come back in two or more added slots.
    MERGE: an added slot has frames of two or more removed slots.
    GROW: an added slot also has frames that no removed slot had.
    TRUNCATE: a removed slot also had frames that no added slot has.
    MOVE: the host memory of a removed slot, all of it and nothing more, is an added slot at other frames. What is true
    of such a pair only because it moved (grown, truncated, other host memory behind a frame) is not named again.
    REHOST: some frame has other host memory than before.
    READONLY_TOGGLE: some frame has the host memory of before, and the READONLY flag is another.
    RECREATE: none of the above; the same slots come back, at most with another id or other logging.
    """

    SPLIT = "split"
    MERGE = "merge"
    GROW = "grow"
    TRUNCATE = "truncate"
    MOVE = "move"
    REHOST = "re-host"
    READONLY_TOGGLE = "read-only toggle"
    RECREATE = "re-create"


@dataclass(frozen=True, slots=True)
class AtomicSet:
    """Changes of one transaction, in order, that would have to take effect at one instant for no hole to be seen."""

    changes: tuple[RecordedChange, ...]
    primitives: tuple[Primitive, ...]

    @property
    def lines(self) -> tuple[int, ...]:
        """The lines of the changes, each once, in order."""
        return tuple(dict.fromkeys(each.line for each in self.changes))

    def as_dict(self) -> dict[str, Any]:
        """The set as JSON takes it; addresses and sizes in bytes."""
        return {
            "primitives": [each.value for each in self.primitives],
            "changes": [
                {
                    "line": each.line,
                    "kind": each.kind.value,
                    "implied": each.implied,
                    "slot": each.change.slot,
                    "removed": _slot_dict(each, removed=True),
                    "added": _slot_dict(each, removed=False),
                }
                for each in self.changes
            ],
        }


def _slot_dict(each: RecordedChange, *, removed: bool) -> dict[str, int] | None:
    slot = each.removed if removed else each.added
    if slot is None:
        return None
    return {
        "gpa": slot.base_gfn << PAGE_SHIFT,
        "size": slot.npages << PAGE_SHIFT,
        "userspace_addr": slot.userspace_addr,
        "flags": slot.flags,
    }


def atomic_sets(
    changes: Sequence[RecordedChange], returned: Iterable[Returned], chained: Iterable[tuple[int, int]]
) -> tuple[AtomicSet, ...]:
    """The connected sets of ``changes``, by first change.

    Two changes are connected if the second gave back frames that the first had taken away (``returned``), or took away
    what the first had given (``chained``, pairs of indices). O(n log n).
    """
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    returned = tuple(returned)
    for each in returned:
        parent[root(each.restored)] = root(each.removed)
    for first, second in chained:
        if first in parent and second in parent:
            parent[root(second)] = root(first)
    members: dict[int, list[int]] = defaultdict(list)
    pieces: dict[int, list[Returned]] = defaultdict(list)
    for i in sorted(parent):
        members[root(i)].append(i)
    for each in returned:
        pieces[root(each.removed)].append(each)
    return tuple(
        AtomicSet(tuple(changes[i] for i in indices), _primitives(changes, indices, pieces[key]))
        for key, indices in members.items()
    )


def _primitives(changes: Sequence[RecordedChange], indices: list[int], pieces: list[Returned]) -> tuple[Primitive, ...]:
    """What the changes at ``indices``, between which ``pieces`` went and came, amount to."""
    moved = _moved_pairs(changes, indices)
    moved_from, moved_to = {i for i, _ in moved}, {j for _, j in moved}
    came_back: dict[int, int] = defaultdict(int)
    came_from: dict[int, int] = defaultdict(int)
    successors: dict[int, set[int]] = defaultdict(set)
    predecessors: dict[int, set[int]] = defaultdict(set)
    found = set()
    if moved:
        found.add(Primitive.MOVE)
    for each in pieces:
        came_back[each.removed] += each.end_gfn - each.start_gfn
        came_from[each.restored] += each.end_gfn - each.start_gfn
        successors[each.removed].add(each.restored)
        predecessors[each.restored].add(each.removed)
        old, new = changes[each.removed].removed, changes[each.restored].added
        assert old is not None
        assert new is not None
        if not each.same_host_memory:
            if (each.removed, each.restored) not in moved:
                found.add(Primitive.REHOST)
        elif (old.flags ^ new.flags) & KVM_MEM_READONLY:
            found.add(Primitive.READONLY_TOGGLE)
    if any(len(each) > 1 for each in successors.values()):
        found.add(Primitive.SPLIT)
    if any(len(each) > 1 for each in predecessors.values()):
        found.add(Primitive.MERGE)
    for i in indices:
        old, new = changes[i].removed, changes[i].added
        if old is not None and i not in moved_from and came_back[i] < old.npages:
            found.add(Primitive.TRUNCATE)
        if new is not None and i not in moved_to and came_from[i] < new.npages:
            found.add(Primitive.GROW)
    return tuple(each for each in Primitive if each in found) or (Primitive.RECREATE,)


def _moved_pairs(changes: Sequence[RecordedChange], indices: list[int]) -> set[tuple[int, int]]:
    """Pairs (removed, added) of indices with the very same host memory at other frames."""
    pairs = {(i, i) for i in indices if changes[i].kind is ChangeKind.MOVE}
    removed: dict[tuple[int, int], int] = {}
    for i in indices:
        old = changes[i].removed
        if old is not None and (i, i) not in pairs:
            removed[old.userspace_addr, old.npages] = i
    for j in indices:
        new = changes[j].added
        if new is not None and (j, j) not in pairs:
            i = removed.get((new.userspace_addr, new.npages), j)
            old = changes[i].removed
            if old is not None and old.base_gfn != new.base_gfn:
                pairs.add((i, j))
    return pairs
