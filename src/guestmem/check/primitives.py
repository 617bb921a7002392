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
    from collections.abc import Mapping

    from ..memslots.slot import Slot
    from ..traces.timeline import RecordedChange
    from .missing import Returned, Walk

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


PRIMITIVES = tuple(Primitive)


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


def atomic_sets(changes: Mapping[int, RecordedChange], walked: Walk) -> tuple[AtomicSet, ...]:
    """The connected sets of ``changes``, over which ``walked`` went, by first change. O(n log n).

    ``changes`` are those of a transaction, by their place. Two are connected if one gave back frames that the other had
    taken away.
    """
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for _, _, removed, restored, _ in walked.returned:
        parent[root(restored)] = root(removed)
    members: dict[int, list[int]] = defaultdict(list)
    pieces: dict[int, list[Returned]] = defaultdict(list)
    for i in sorted(parent):
        members[root(i)].append(i)
    for each in walked.returned:
        pieces[root(each[2])].append(each)
    return tuple(
        [
            AtomicSet(tuple([changes[i] for i in indices]), _primitives(changes, indices, pieces[key]))
            for key, indices in members.items()
        ]
    )


def _primitives(
    changes: Mapping[int, RecordedChange], indices: list[int], pieces: list[Returned]
) -> tuple[Primitive, ...]:
    """What the changes at ``indices``, between which ``pieces`` went and came, amount to."""
    removed = {i: changes[i].removed for i in indices}
    added = {i: changes[i].added for i in indices}
    moved = _moved_pairs(changes, indices, removed, added)
    moved_from, moved_to = {i for i, _ in moved}, {j for _, j in moved}
    came_back = dict.fromkeys(indices, 0)
    came_from = dict.fromkeys(indices, 0)
    successor: dict[int, int] = {}
    predecessor: dict[int, int] = {}
    split = merge = rehost = toggle = truncate = grow = False
    for start, end, i, j, same in pieces:
        came_back[i] += end - start
        came_from[j] += end - start
        split = split or successor.setdefault(i, j) != j
        merge = merge or predecessor.setdefault(j, i) != i
        if not same:
            rehost = rehost or (i, j) not in moved
        elif not toggle:
            old, new = removed[i], added[j]
            toggle = old is not None and new is not None and bool((old.flags ^ new.flags) & KVM_MEM_READONLY)
    for i in indices:
        old, new = removed[i], added[i]
        if old is not None and came_back[i] < old.npages:
            truncate = truncate or i not in moved_from
        if new is not None and came_from[i] < new.npages:
            grow = grow or i not in moved_to
    found = (split, merge, grow, truncate, bool(moved), rehost, toggle)
    return tuple([each for each, holds in zip(PRIMITIVES, found, strict=False) if holds]) or (Primitive.RECREATE,)


def _moved_pairs(
    changes: Mapping[int, RecordedChange],
    indices: list[int],
    removed: Mapping[int, Slot | None],
    added: Mapping[int, Slot | None],
) -> set[tuple[int, int]]:
    """Pairs (removed, added) of indices with the very same host memory at other frames."""
    pairs = set()
    sources: dict[tuple[int, int], tuple[int, int]] = {}
    for i in indices:
        old, new = removed[i], added[i]
        if changes[i].kind is ChangeKind.MOVE:
            pairs.add((i, i))
        elif old is not None:
            sources[old.userspace_addr, old.npages] = i, old.base_gfn
        elif new is not None:
            source = sources.get((new.userspace_addr, new.npages))
            if source is not None and source[1] != new.base_gfn:
                pairs.add((source[0], i))
    return pairs
