"""Two moments of a memory map: what changed, the updates that takes in three ways, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import UsageError
from ..memslots.changes import Change
from ..memslots.slot import Slot
from ..vmm import Piece, cost_of, difference, fewest, fewest_pieces, least
from ..vmm.kvm_listener import replaced
from ..vmm.plan import slots_after
from .map import change_dict, change_line, clip, cost_dict, cost_rows, section_dict, size, slot_dict
from .map_moment import fewest_slots, pieces_of, qemus_slots, space_of

__all__ = ["Diff"]


class Diff:
    """Two moments: what changed in the view, and the updates in three ways."""

    def __init__(self, before: Any, after: Any, space: str | None) -> None:
        if (before.map is None) != (after.map is None):
            raise UsageError(f"--diff: {before.name} and {after.name}: both are maps or both are traces")
        self.names = before.name, after.name
        self.gone: list[Any] = []
        self.new: list[Any] = []
        self.slots: dict[str, list[Slot]] = {}
        self.changes: dict[str, list[Change]] = {}
        if before.map is not None and after.map is not None:
            old, now = space_of(before.map, space), space_of(after.map, space)
            self.title = f"address space {old.name}"
            was, comes = ([_identity(section) for section in each.view] for each in (old, now))
            self.gone = [section for section in old.view if _identity(section) not in set(comes)]
            self.new = [section for section in now.view if _identity(section) not in set(was)]
            listener = replaced(old, now)
            self.slots["QEMU"] = qemus_slots(old)
            self.changes["QEMU"] = [*listener.changes[1]] if len(listener.changes) > 1 else []
            mine, wanted = fewest_slots(old), fewest_pieces(now.view)
        else:
            self.title = "slots"
            self.slots["QEMU"] = before.slots
            self.changes["QEMU"] = self._recorded(before, after)
            mine = [piece.as_slot(number) for number, piece in enumerate(pieces_of(before.slots))]
            wanted = pieces_of(after.slots)
        for name, way in (("least", least), ("fewest", fewest)):
            self.slots[name] = mine
            self.changes[name] = way(mine, wanted)

    @staticmethod
    def _recorded(before: Any, after: Any) -> list[Change]:
        """What the VMM did between two lines of one trace; between two traces, what QEMU would have done."""
        if before.path == after.path and before.at is not None:
            until = after.at
            return [
                each.change
                for each in after.recorded
                if each.applied and each.line > before.at and (until is None or each.line <= until)
            ]
        old, new = {slot[2:]: slot for slot in before.slots}, {slot[2:]: slot for slot in after.slots}
        changes = [Change(slot.id) for key, slot in old.items() if key not in new]
        used = {slot.id for key, slot in old.items() if key in new}
        free = (number for number in range(1 << 16) if number not in used)
        added = (Piece(*slot[2:]) for key, slot in new.items() if key not in old)
        return changes + [Change(next(free), *piece) for piece in added]

    def costs(self) -> dict[str, Any]:
        """By way."""
        return {name: cost_of(self.slots[name], changes) for name, changes in self.changes.items()}

    def lines(self) -> Iterator[str]:
        """As text."""
        yield f"from {self.names[0]}"
        yield f"to   {self.names[1]}: {self.title}"
        if self.gone or self.new:
            yield ""
            yield "flat view"
            for sign, sections in (("-", self.gone), ("+", self.new)):
                for each in sections:
                    name = f"{each.region.name} @{each.offset:#x}"
                    yield clip(f"{sign} {each.start:#12x} {size(each.size):>10}  {each.kind:<4}  {name}")
        after = slots_after(self.slots["QEMU"], self.changes["QEMU"])
        found = difference(self.slots["fewest"], slots_after(self.slots["fewest"], self.changes["fewest"]))
        if not any(self.changes.values()):
            yield ""
            yield f"no slot changes; there are {len(after)} in QEMU's way, {len(self.slots['fewest'])} at the fewest"
            return
        yield ""
        yield "net difference of the fewest slots"
        for each in found:
            words = ", ".join(primitive.value for primitive in each.primitives)
            yield clip(f"  [{each.start << 12:#x}, {each.end << 12:#x}) {size((each.end - each.start) << 12)}: {words}")
        titles = {"QEMU": "QEMU's way", "least": "least disturbing (a kernel)", "fewest": "fewest slots (atomic)"}
        for name, changes in self.changes.items():
            now = {slot.id: slot for slot in self.slots[name]}
            left = len(slots_after(self.slots[name], changes))
            yield ""
            yield f"{titles[name]}: {len(changes)} calls, from {len(now)} to {left} slots"
            for change in changes:
                yield change_line(change, now)
        yield ""
        yield "what it costs vCPUs that run (counted, not measured)"
        yield from cost_rows(self.costs())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        costs = self.costs()
        return {
            "before": self.names[0],
            "after": self.names[1],
            "view": {
                "gone": [section_dict(each) for each in self.gone],
                "new": [section_dict(each) for each in self.new],
            },
            "ways": {
                name: {
                    "before": [slot_dict(slot) for slot in self.slots[name]],
                    "changes": [change_dict(change) for change in changes],
                    "cost": cost_dict(costs[name]),
                }
                for name, changes in self.changes.items()
            },
        }


def _identity(section: Any) -> tuple[object, ...]:
    return (*section[:2], section.region.name, section.offset, section.kind, section.dirty_log_mask)
