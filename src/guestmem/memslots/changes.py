"""A change of one memslot, as user space asks for it, and which of KVM's five kinds it is; what a batch amounts to.

Source: ``enum kvm_mr_change`` and ``kvm_set_memory_region()``, Linux 6.18, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from ..units import PAGE_SHIFT, format_frames
from .slot import Slot, SlotKey

__all__ = ["KINDS", "Action", "Change", "ChangeKind", "Effect"]


class ChangeKind(enum.Enum):
    """What a change amounts to, given the slot that has its id now."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags-only"
    NOTHING = "nothing"


KINDS: tuple[ChangeKind, ...] = (ChangeKind.NOTHING, *ChangeKind)
"""Kind by status word of ``checks.kind_of``, from 1 on."""


class Change(NamedTuple):
    """One call of KVM_SET_USER_MEMORY_REGION, in frames: ``npages`` 0 deletes the slot.

    The last three fields are those of ``Slot``. KVM ignores all but ``as_id`` and ``slot`` of a delete; VMMs differ in
    what they leave in the rest.

    >>> Change(slot=4, base_gfn=0x100, npages=0xFF00, userspace_addr=0x7F0000000000)
    Change(slot 4: [0x100000, 0x10000000) 255 MiB -> 0x7f0000000000)
    >>> Change(slot=4)
    Change(slot 4: delete)
    """

    slot: int
    base_gfn: int = 0
    npages: int = 0
    userspace_addr: int = 0
    flags: int = 0
    as_id: int = 0
    guest_memfd: int = 0
    guest_memfd_offset: int = 0
    attributes: int = 0

    @classmethod
    def of(cls, slot: Slot) -> Change:
        """What makes ``slot``, with all that it has."""
        as_id, id_, base_gfn, npages, userspace_addr, flags, *backing = slot
        return cls(id_, base_gfn, npages, userspace_addr, flags, as_id, *backing)

    @property
    def key(self) -> SlotKey:
        """Which slot it is about."""
        return SlotKey(self.as_id, self.slot)

    @property
    def deletes(self) -> bool:
        """Whether the change deletes its slot."""
        return self.npages == 0

    @property
    def guest_phys_addr(self) -> int:
        """Guest physical address of the first byte."""
        return self.base_gfn << PAGE_SHIFT

    @property
    def memory_size(self) -> int:
        """Size in bytes; 0 deletes."""
        return self.npages << PAGE_SHIFT

    def as_slot(self) -> Slot:
        """The slot as it is after a CREATE, MOVE or FLAGS_ONLY."""
        slot, base_gfn, npages, userspace_addr, flags, as_id, file, offset, attributes = self
        return tuple.__new__(Slot, (as_id, slot, base_gfn, npages, userspace_addr, flags, file, offset, attributes))

    def __repr__(self) -> str:
        space = f"{self.as_id}:" if self.as_id else ""
        if self.deletes:
            return f"Change(slot {space}{self.slot}: delete)"
        flags = f" flags={self.flags:#x}" if self.flags else ""
        frames = format_frames(self.base_gfn, self.base_gfn + self.npages)
        return f"Change(slot {space}{self.slot}: {frames} -> {self.userspace_addr:#x}{flags})"


class Action(enum.Enum):
    """What a range of frames needs when the edited set is published."""

    KEEP = 1
    """Same host memory, same rights: nothing."""
    WRITES = 2
    """Same host memory, fewer rights (read-only or logging came): stall writes, write-protect, flush."""
    LIFT = 3
    """Same host memory, more rights: nothing now, the next fault lifts."""
    STALL = 4
    """Other host memory, or none any more, or no right to read or to fetch: mark in flux, zap, flush, wait."""
    FILL = 5
    """Memory where there was none: nothing before the instant."""


class Effect(NamedTuple):
    """One range of frames and what it needs; the slots are those of its first frame.

    Further slots may follow in the range if host memory and flags go on as they began, old and new.
    """

    start_gfn: int
    end_gfn: int
    action: Action
    old: Slot | None
    new: Slot | None
