"""From the slots that are there to those that a view wants: which changes, in which order.

Two ways, beside QEMU's (``kvm_listener``). ``fewest`` ends with the fewest slots: right where an update keeps the
translations of what stays (the design ``atomic``). ``least`` touches no slot of which all frames stay: right on a
kernel, where a slot can only be deleted whole, and all that it had is missing until it is created again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..memslots.changes import Change
from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_USER_MEM_SLOTS, Slot
from ..units import PAGE_SHIFT
from .slots import Piece

__all__ = ["WAYS", "fewest", "least", "restored", "slots_after"]


class _Part(NamedTuple):
    start: int
    end: int
    piece: Piece


def fewest(
    slots: Iterable[Slot],
    pieces: Sequence[Piece],
    *,
    as_id: int = 0,
    max_slots: int = KVM_USER_MEM_SLOTS,
    taken: Collection[int] = (),
) -> list[Change]:
    """Changes after which there is one slot for each of ``pieces``, which are ascending and disjoint. O(n log n).

    A slot stays if a piece is the same; if only logging differs its flags change. Deletes, flags, creates, in this
    order; a create takes the lowest free id, none of ``taken`` (other slots'). UsageError if there are too few.
    """
    there = {(slot.base_gfn, slot.npages, slot.userspace_addr, _fixed(slot.flags)): slot for slot in slots}
    wanted = {(piece.base_gfn, piece.npages, piece.userspace_addr, _fixed(piece.flags)): piece for piece in pieces}
    kept = {slot: wanted[key].flags for key, slot in there.items() if key in wanted}
    gone = [slot for key, slot in there.items() if key not in wanted]
    new = [piece for key, piece in wanted.items() if key not in there]
    return _ordered(gone, kept, new, as_id, max_slots, taken, moves=False)


def least(
    slots: Iterable[Slot],
    pieces: Sequence[Piece],
    *,
    as_id: int = 0,
    max_slots: int = KVM_USER_MEM_SLOTS,
    taken: Collection[int] = (),
) -> list[Change]:
    """Changes that take no frame away that could stay, and then make as few new slots as that leaves room for.

    A slot stays if all its frames keep their host memory and rights, though a larger slot could now hold them too. What
    only moved is moved, in one call. Where ids would run out, ``fewest`` is taken instead. O(n log n).
    """
    kept: dict[Slot, int] = {}
    gone: list[Slot] = []
    at = 0
    for slot in sorted(slots, key=lambda each: each.base_gfn):
        while at < len(pieces) and pieces[at].end_gfn <= slot.base_gfn:
            at += 1
        flags = _flags_of(slot, pieces, at)
        if flags is None:
            gone.append(slot)
        else:
            kept[slot] = flags
    new = list(_rest(pieces, list(kept)))
    if len(kept) + len(new) + len(taken) > max_slots:
        return fewest([*kept, *gone], pieces, as_id=as_id, max_slots=max_slots, taken=taken)
    return _ordered(gone, kept, new, as_id, max_slots, taken, moves=True)


WAYS = {"fewest": fewest, "least": least}


def _fixed(flags: int) -> int:
    """Flags that a slot cannot change."""
    return flags & ~KVM_MEM_LOG_DIRTY_PAGES


def _flags_of(slot: Slot, pieces: Sequence[Piece], at: int) -> int | None:
    """The flags with which ``slot`` can stay; None if a frame of it changes, or its frames disagree on logging."""
    gfn, flags = slot.base_gfn, None
    while gfn < slot.end_gfn:
        if at == len(pieces):
            return None
        piece = pieces[at]
        same = piece.base_gfn <= gfn and slot.hva(gfn) == piece.userspace_addr + ((gfn - piece.base_gfn) << PAGE_SHIFT)
        if not same or _fixed(piece.flags) != _fixed(slot.flags) or flags not in (None, piece.flags):
            return None
        gfn, flags, at = piece.end_gfn, piece.flags, at + 1
    return flags


def _rest(pieces: Sequence[Piece], kept: list[Slot]) -> Iterable[Piece]:
    """What of ``pieces`` no kept slot has; both ascending."""
    i = 0
    for piece in pieces:
        gfn = piece.base_gfn
        while i < len(kept) and kept[i].end_gfn <= gfn:
            i += 1
        j = i
        while gfn < piece.end_gfn:
            stop = min(kept[j].base_gfn, piece.end_gfn) if j < len(kept) else piece.end_gfn
            if stop > gfn:
                address = piece.userspace_addr + ((gfn - piece.base_gfn) << PAGE_SHIFT)
                yield Piece(gfn, stop - gfn, address, piece.flags)
            gfn = kept[j].end_gfn if j < len(kept) else piece.end_gfn
            j += 1


def _ordered(
    gone: list[Slot],
    kept: dict[Slot, int],
    new: list[Piece],
    as_id: int,
    max_slots: int,
    others: Collection[int],
    *,
    moves: bool,
) -> list[Change]:
    """Deletes, moves, flags, creates."""
    moved = _moves(gone, new) if moves else {}
    changes = [Change(slot.id, as_id=as_id) for slot in sorted(gone) if slot not in moved]
    changes += [Change(slot.id, *piece, as_id) for slot, piece in moved.items()]
    changes += [
        Change.of(slot)._replace(flags=flags, as_id=as_id) for slot, flags in kept.items() if flags != slot.flags
    ]
    used = {*others, *(slot.id for slot in [*kept, *moved])}
    free = (slot for slot in range(max_slots) if slot not in used)
    taken = set(moved.values())
    for piece in new:
        if piece not in taken:
            slot = next(free, None)
            if slot is None:
                raise UsageError(f"slots: the view needs {len(kept) + len(new)}, and {max_slots} can be")
            changes.append(Change(slot, *piece, as_id))
    return changes


def _moves(gone: list[Slot], new: list[Piece]) -> dict[Slot, Piece]:
    """Slots that are wanted as they are at another place, where no other such slot stands at the time."""
    places: dict[tuple[int, int, int], list[Piece]] = {}
    for piece in reversed(new):
        places.setdefault(piece[1:], []).append(piece)
    found: dict[Slot, Piece] = {}
    for slot in gone:  # aliases of one RAM have slots that differ only by their place: each takes another
        alike = places.get((slot.npages, slot.userspace_addr, slot.flags))
        if alike and alike[-1].base_gfn != slot.base_gfn:
            found[slot] = alike.pop()
    return {
        slot: piece
        for slot, piece in found.items()
        if not any(
            other is not slot and other.base_gfn < piece.end_gfn and piece.base_gfn < other.end_gfn for other in found
        )
    }


def restored(now: Iterable[Slot], before: Iterable[Slot], as_id: int = 0) -> list[Change]:
    """Changes that turn the slots ``now`` into ``before``, with their ids and borders: deletes, flags, creates."""
    there, wanted = {slot.id: slot for slot in now}, {slot.id: slot for slot in before}
    flags = [
        slot
        for slot in wanted.values()
        if slot.id in there
        and slot != there[slot.id]
        and slot[:-1] == there[slot.id][:-1]
        and _fixed(slot.flags) == _fixed(there[slot.id].flags)
    ]
    stay = {slot.id for slot in flags} | {slot.id for slot in wanted.values() if there.get(slot.id) == slot}
    changes = [Change(slot, as_id=as_id) for slot in there if slot not in stay]
    again = [*flags, *(slot for slot in wanted.values() if slot.id not in stay)]
    return changes + [Change.of(slot)._replace(as_id=as_id) for slot in again]


def slots_after(slots: Iterable[Slot], changes: Iterable[Change]) -> list[Slot]:
    """The slots that ``changes`` leave, by frame."""
    now = {slot.id: slot for slot in slots}
    for change in changes:
        if change.deletes:
            now.pop(change.slot, None)
        else:
            now[change.slot] = change.as_slot()
    return sorted(now.values(), key=lambda each: each.base_gfn)
