"""One moment of a memory map, as text and as JSON: tree, flat view, slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import UsageError
from ..memslots.slot import Slot
from ..units import PAGE_SHIFT
from ..vmm import AddressSpace, KvmListener, MemoryMap, Piece, fewest_pieces
from ..vmm.description import description_of
from ..vmm.slots import leaf_flags
from .map import section_dict, shared, slot_dict, slot_lines, tree, view_lines

__all__ = ["Show", "fewest_slots", "pieces_of", "qemus_slots", "space_of"]


def space_of(memory: MemoryMap, name: str | None) -> AddressSpace:
    """The address space of that name; without a name "memory", or the first."""
    if name is not None:
        return memory.space(name)
    return next((each for each in memory.spaces if each.name == "memory"), memory.spaces[0])


def qemus_slots(space: AddressSpace) -> list[Slot]:
    """The slots that QEMU would have for a view that it sees for the first time."""
    listener = KvmListener()
    listener.begin(space)
    for section in space.view:
        listener.region_add(space, section)
    listener.commit(space)
    return sorted(listener.slots.values(), key=lambda slot: slot.base_gfn)


def fewest_slots(space: AddressSpace) -> list[Slot]:
    """The fewest slots for a view."""
    return [piece.as_slot(number) for number, piece in enumerate(fewest_pieces(space.view))]


def pieces_of(slots: Iterable[Slot]) -> list[Piece]:
    """The fewest pieces that are the same memory as ``slots``."""
    found: list[Piece] = []
    for slot in slots:
        last = found[-1] if found else None
        ends = None if last is None else (last.end_gfn, last.userspace_addr + (last.npages << PAGE_SHIFT), last.flags)
        if last is not None and ends == (slot.base_gfn, slot.userspace_addr, slot.flags):
            found[-1] = last._replace(npages=last.npages + slot.npages)
        else:
            found.append(Piece(slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags))
    return found


class Show:
    """One moment."""

    def __init__(self, moment: Any, space: str | None, *, every: bool, only_slots: bool) -> None:
        self.moment, self.only_slots = moment, only_slots
        self.spaces: list[AddressSpace] = []
        if moment.map is not None:
            self.spaces = moment.map.spaces if every else [space_of(moment.map, space)]
        elif space is not None or every:
            raise UsageError(f"{moment.name}: a trace has slots, and no address spaces by name")

    def lines(self) -> Iterator[str]:
        """As text."""
        moment = self.moment
        if moment.map is None:
            slots = moment.slots
            yield f"{moment.name}: {moment.format}; {len(slots)} slots, {len(pieces_of(slots))} would do"
            yield from slot_lines(slots)
            return
        counts = f"{len(moment.map.regions)} regions, {len(moment.map.spaces)} address spaces"
        yield f"{moment.name}: {moment.format}; {counts}"
        seen: set[int] = set()
        for space in self.spaces:
            if id(space.view) in seen:
                continue
            seen.add(id(space.view))
            others = shared(moment.map, space)
            yield ""
            yield f"{space.name}{' (also ' + ', '.join(others) + ')' if others else ''}, root {space.root.name}"
            qemus, fewest = qemus_slots(space), fewest_slots(space)
            if not self.only_slots:
                if moment.tree:
                    yield from tree(space.root)
                    yield ""
                yield f"flat view of {space.name}: {len(space.view)} ranges"
                yield from view_lines(space.view, qemus, fewest)
                yield ""
            yield f"slots in QEMU's way: {len(qemus)}"
            yield from slot_lines(qemus)
            qemu_like = len(fewest_pieces(space.view, flags=leaf_flags))
            yield f"fewest slots, read-only as the view says: {len(fewest)} (as QEMU says: {qemu_like})"
            yield from slot_lines(fewest)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        moment = self.moment
        found: dict[str, Any] = {"file": moment.name, "format": moment.format}
        if moment.map is None:
            return found | {
                "slots": [slot_dict(slot) for slot in moment.slots],
                "fewest": [slot_dict(piece.as_slot(i)) for i, piece in enumerate(pieces_of(moment.slots))],
            }
        found["map"] = description_of(moment.map)
        found["spaces"] = [
            {
                "name": space.name,
                "root": space.root.name,
                "view": [section_dict(section) for section in space.view],
                "slots": [slot_dict(slot) for slot in qemus_slots(space)],
                "fewest": [slot_dict(slot) for slot in fewest_slots(space)],
            }
            for space in self.spaces
        ]
        return found
