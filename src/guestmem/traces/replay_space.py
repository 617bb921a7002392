"""The frames of an address space while a trace is replayed, and deletes of slots from before it."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from ..memslots.slot import KVM_MEM_READONLY
from ..units import format_frames

if TYPE_CHECKING:
    from ..memslots.changes import Change
    from ..memslots.slot import Slot

__all__ = ["PendingDelete", "Space", "flips_readonly", "frames_of"]


class Space:
    """The frames of one address space that have memory: first and end of each slot, and who made it, by frame."""

    __slots__ = ("bases", "ends", "makers")

    def __init__(self) -> None:
        self.bases: list[int] = []
        self.ends: list[int] = []
        self.makers: list[int] = []

    def take(self, base: int) -> None:
        """Remove the slot that begins at ``base``, if there is one: not after a change that was refused as damage."""
        i = bisect_right(self.bases, base) - 1
        if i >= 0 and self.bases[i] == base:
            del self.bases[i], self.ends[i], self.makers[i]

    def meets(self, base: int, end: int) -> int | None:
        """Who made a slot that has one of the frames ``[base, end)``, or None."""
        i = bisect_right(self.bases, base)
        if i and self.ends[i - 1] > base:
            return self.makers[i - 1]
        return self.makers[i] if i < len(self.bases) and self.bases[i] < end else None

    def give(self, base: int, end: int, maker: int) -> int | None:
        """Insert a slot, unless it overlaps another one: then who made that."""
        i = bisect_right(self.bases, base)
        if i and self.ends[i - 1] > base:
            return self.makers[i - 1]
        if i < len(self.bases) and self.bases[i] < end:
            return self.makers[i]
        self.bases.insert(i, base)
        self.ends.insert(i, end)
        self.makers.insert(i, maker)
        return None


class PendingDelete:
    """The delete of a slot that was there before the trace began, while its size is not known."""

    __slots__ = ("as_id", "end", "gpa", "hva", "index", "slot", "start")

    def __init__(self, index: int, as_id: int, slot: int, gpa: int, hva: int) -> None:
        self.index, self.as_id, self.slot, self.gpa, self.hva = index, as_id, slot, gpa, hva
        self.start = self.end = 0

    def take(self, slot: int, gpa: int, size: int, hva: int) -> None:
        """A create that follows: it had the same memory, if guest and host addresses are as far apart as before."""
        if self.hva:
            if hva - gpa == self.hva - self.gpa and gpa >= self.gpa:
                self.start, self.end = self.gpa, max(self.end, gpa + size)
        elif slot == self.slot and not self.end:  # a VMM that deletes with zeros in all fields
            self.start, self.end, self.hva = gpa, gpa + size, hva


def frames_of(slot: Slot) -> str:
    """The frames of a slot in words."""
    return format_frames(slot.base_gfn, slot.end_gfn)


def flips_readonly(change: Change, old: Slot) -> bool:
    """Whether the change is that of a READONLY flag and nothing but flags."""
    return (
        bool((change.flags ^ old.flags) & KVM_MEM_READONLY)
        and change.base_gfn == old.base_gfn
        and change.npages == old.npages
        and change.userspace_addr == old.userspace_addr
    )
