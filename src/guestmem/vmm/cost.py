"""What an update of slots amounts to, frame by frame, and what it costs vCPUs that run meanwhile.

Counted, not measured: durations are a machine's business, and ``guestmem compare`` measures them.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..memslots.changes import Action, Change
from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Slot
from .plan import slots_after

__all__ = ["Cost", "Difference", "Primitive", "Span", "cost_of", "difference", "spans"]


class Span(NamedTuple):
    """Frames ``[start, end)``: the slot that has them before and the one after, and what ``atomic`` does to them."""

    start: int
    end: int
    old: Slot | None
    new: Slot | None
    action: Action


def spans(before: Iterable[Slot], after: Iterable[Slot]) -> Iterator[Span]:
    """Both sets side by side, where any has something. O(n log n)."""
    old, new = (sorted(slots, key=lambda each: each.base_gfn) for slots in (before, after))
    edges = sorted({gfn for slot in (*old, *new) for gfn in (slot.base_gfn, slot.end_gfn)})
    i = j = 0
    for start, end in itertools.pairwise(edges):
        while i < len(old) and old[i].end_gfn <= start:
            i += 1
        while j < len(new) and new[j].end_gfn <= start:
            j += 1
        was = old[i] if i < len(old) and old[i].base_gfn <= start else None
        now = new[j] if j < len(new) and new[j].base_gfn <= start else None
        if was is not None or now is not None:
            yield Span(start, end, was, now, _action(start, was, now))


def _action(gfn: int, was: Slot | None, now: Slot | None) -> Action:
    if was is None:
        return Action.FILL
    if now is None or was.hva(gfn) != now.hva(gfn):
        return Action.STALL
    rights = KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES
    if now.flags & ~was.flags & rights:
        return Action.WRITES
    return Action.LIFT if was.flags & ~now.flags & rights else Action.KEEP


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one update. Frames are counted once each.

    ``calls``: ioctls. ``hole``: frames that are there before and after, and missing for a while if the calls are made
    one by one; ``hole_same`` of them would not have had to change at all. ``dropped``: frames whose translations are
    lost, hole or not. ``pauses``: whether QEMU, or ``pause_if_overlap``, stops all vCPUs. ``stalled`` and
    ``writes_stalled``: frames on which, with ``atomic``, accesses (or only writes) wait; all others go on.
    """

    calls: int
    deletes: int
    creates: int
    moves: int
    flags: int
    hole: int
    hole_same: int
    dropped: int
    pauses: bool
    stalled: int
    writes_stalled: int


def cost_of(before: Sequence[Slot], changes: Sequence[Change]) -> Cost:
    """What ``changes`` to ``before`` cost. O(n log n)."""
    there = {slot.id: slot for slot in before}
    away: list[Slot] = []
    deletes = creates = moves = flags = 0
    for change in changes:
        old = there.get(change.slot)
        if change.deletes:
            deletes += 1
            away += [there.pop(change.slot)] if old is not None else []
            continue
        there[change.slot] = change.as_slot()
        if old is None:
            creates += 1
        elif old.base_gfn != change.base_gfn:
            moves += 1
            away.append(old)
        else:
            flags += 1
    after = slots_after(before, changes)
    taken = {(slot.base_gfn, slot.id) for slot in away if slot in before}
    hole = same = dropped = stalled = writes = 0
    for start, end, was, now, action in spans(before, after):
        frames = end - start
        stalled += frames * (action is Action.STALL)
        writes += frames * (action is Action.WRITES)
        if was is not None and (was.base_gfn, was.id) in taken:
            dropped += frames
            if now is not None:
                hole += frames
                same += frames * (action is Action.KEEP)
    return Cost(len(changes), deletes, creates, moves, flags, hole, same, dropped, hole > 0, stalled, writes)


class Primitive(enum.Enum):
    """What happened to slots, in the words of the debate on atomic updates of 2022."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    GROW = "grow"
    TRUNCATE = "truncate"
    SPLIT = "split"
    MERGE = "merge"
    REHOST = "re-host"
    READONLY = "read-only toggle"
    LOG = "log toggle"


class Difference(NamedTuple):
    """Slots that went and slots that came, of frames ``[start, end)``, and what that was."""

    primitives: tuple[Primitive, ...]
    start: int
    end: int
    old: tuple[Slot, ...]
    new: tuple[Slot, ...]


def difference(before: Sequence[Slot], after: Sequence[Slot]) -> list[Difference]:
    """The net difference, in connected sets by ascending frame; a slot that only changed its id is none. O(n log n)."""
    groups: list[tuple[int, int, list[Slot], list[Slot], set[Primitive]]] = []
    for start, end, was, now, _ in spans(before, after):
        last = groups[-1] if groups else None
        if last is not None and last[1] == start and (was in last[2] or now in last[3]):
            groups[-1] = (last[0], end, *last[2:])
        else:
            groups.append((start, end, [], [], set()))
        _, _, old, new, found = groups[-1]
        if was is not None and was not in old[-1:]:
            old.append(was)
        if now is not None and now not in new[-1:]:
            new.append(now)
        if was is None or now is None:
            found.add(Primitive.GROW if was is None else Primitive.TRUNCATE)
        elif was.hva(start) != now.hva(start):
            found.add(Primitive.REHOST)
        else:
            found |= {Primitive.READONLY} if (was.flags ^ now.flags) & KVM_MEM_READONLY else set()
            found |= {Primitive.LOG} if (was.flags ^ now.flags) & KVM_MEM_LOG_DIRTY_PAGES else set()
    result = []
    for start, end, old, new, found in groups:
        if old and new:
            found.update({Primitive.SPLIT} if len(new) > 1 and _shares(old, new) else ())
            found.update({Primitive.MERGE} if len(old) > 1 and _shares(new, old) else ())
        else:
            found.clear()
            found.add(Primitive.DELETE if old else Primitive.CREATE)
        if found:
            result.append(Difference(tuple(each for each in Primitive if each in found), start, end, (*old,), (*new,)))
    return _with_moves(result)


def _shares(wholes: list[Slot], parts: list[Slot]) -> bool:
    """Whether one of ``wholes`` has frames of two of ``parts``."""
    return any(
        sum(part.base_gfn < whole.end_gfn and whole.base_gfn < part.end_gfn for part in parts) > 1 for whole in wholes
    )


def _with_moves(found: list[Difference]) -> list[Difference]:
    """A delete and a create of the same host memory are one move, told where it went."""
    gone = {
        (each.old[0].userspace_addr, each.old[0].npages): each
        for each in found
        if each.primitives == (Primitive.DELETE,) and len(each.old) == 1
    }
    result: list[Difference] = []
    moved: set[int] = set()
    for each in found:
        if each.primitives == (Primitive.CREATE,) and len(each.new) == 1:
            source = gone.pop((each.new[0].userspace_addr, each.new[0].npages), None)
            if source is not None:
                moved.add(id(source))
                result.append(Difference((Primitive.MOVE,), each.start, each.end, source.old, each.new))
                continue
        result.append(each)
    return [each for each in result if id(each) not in moved]
