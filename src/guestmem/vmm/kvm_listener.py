"""QEMU's way from a change of the view to changes of slots: all deletes, then all adds, by exact match.

Source: ``kvm_region_add()``, ``kvm_region_del()``, ``kvm_region_commit()``, ``kvm_set_phys_mem()``,
``kvm_log_start()``, QEMU 10.2 ``accel/kvm/kvm-all.c``. Before 8.0 sections were not queued until the commit, but
carried out at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ..errors import UsageError
from ..memslots.changes import Change
from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_USER_MEM_SLOTS, Slot
from .address_space import AddressSpace
from .flatview import FlatRange, FlatView
from .incremental import Slice
from .listener import PRIORITY_ACCEL, Listener
from .slots import has_slot, leaf_flags, piece_of

__all__ = ["KvmListener", "replaced"]


class KvmListener(Listener):
    """Keeps the slots of one KVM address space as QEMU does, and lists each change that it would ask of KVM.

    ``changes``: all of them, in order, in transactions: a list for each. ``overlaps``: for each transaction whether
    QEMU (8.0 and later) would stop the vCPUs for it, because a section that goes overlaps one that comes.
    ``queued``: as since 8.0; False: as before, at once.
    """

    priority = PRIORITY_ACCEL

    def __init__(self, as_id: int = 0, *, queued: bool = True, max_slots: int = KVM_USER_MEM_SLOTS) -> None:
        self.as_id, self.queued, self.max_slots = as_id, queued, max_slots
        self.slots: dict[int, Slot] = {}
        self.changes: list[list[Change]] = []
        self.overlaps: list[bool] = []
        self._by_place: dict[tuple[int, int], int] = {}
        self._free: list[int] = []
        """A heap of the ids below the highest in use that are free."""
        self._dels: list[FlatRange] = []
        self._adds: list[FlatRange] = []
        self._now: list[Change] = []

    def prepare(self, space: AddressSpace, view: FlatView, slices: Sequence[Slice]) -> None:
        """Refuse what could not be slots: an unknown or unaligned host address, more than ``max_slots``."""
        del space, view
        count = len(self.slots)
        for old, new in slices:
            gone, here = (sum(has_slot(each) and piece_of(each) is not None for each in side) for side in (old, new))
            count += here - gone
        if count > self.max_slots:
            raise UsageError(f"slots: the view needs {count}, and {self.max_slots} can be")

    def begin(self, space: AddressSpace) -> None:
        """Start a list."""
        del space
        self._now = []

    def region_add(self, space: AddressSpace, section: FlatRange) -> None:
        """Queue it, whatever it is."""
        del space
        self._adds.append(section)
        if not self.queued:
            self._add(section)

    def region_del(self, space: AddressSpace, section: FlatRange) -> None:
        """Queue it, whatever it is."""
        del space
        self._dels.append(section)
        if not self.queued:
            self._del(section)

    def log_start(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        """At once: flags only. Nothing if the range was logged for somebody else already."""
        del space, new
        if not old:
            self._set_log(section)

    def log_stop(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        """At once: flags only. Nothing if the range is logged for somebody else still."""
        del space, old
        if not new:
            self._set_log(section)

    def commit(self, space: AddressSpace) -> None:
        """All deletes, then all adds."""
        del space
        dels, adds, self._dels, self._adds = self._dels, self._adds, [], []
        if self.queued:
            for section in dels:
                self._del(section)
            for section in adds:
                self._add(section)
        if self._now:
            self.changes.append(self._now)
            self.overlaps.append(_overlap(dels, adds))
        self._now = []

    # -- one section -------------------------------------------------------------------------------------------------

    def _add(self, section: FlatRange) -> None:
        if not has_slot(section):
            if section.region.backed:  # a ROM device that is not read as memory: whatever slot is there goes
                self._del(section)
            return
        piece = piece_of(section)
        if piece is None:
            return
        slot = heapq.heappop(self._free) if self._free else len(self.slots)  # the lowest that is free
        if slot >= self.max_slots:
            raise UsageError(f"slots: all {self.max_slots} are in use")
        self.slots[slot] = piece.as_slot(slot, self.as_id)
        self._by_place[piece.base_gfn, piece.npages] = slot
        self._now.append(Change(slot, *piece, self.as_id))

    def _del(self, section: FlatRange) -> None:
        if not section.region.backed:
            return
        piece = piece_of(section)
        slot = None if piece is None else self._by_place.pop((piece.base_gfn, piece.npages), None)
        if slot is None:
            return
        old = self.slots.pop(slot)
        heapq.heappush(self._free, slot)
        self._now.append(Change(slot, old.base_gfn, 0, old.userspace_addr, 0, self.as_id))

    def _set_log(self, section: FlatRange) -> None:
        piece = piece_of(section) if has_slot(section) else None
        slot = None if piece is None else self._by_place.get((piece.base_gfn, piece.npages))
        if slot is None:
            return
        old = self.slots[slot]
        flags = leaf_flags(section) & KVM_MEM_LOG_DIRTY_PAGES | old.flags & ~KVM_MEM_LOG_DIRTY_PAGES
        if flags != old.flags:
            self.slots[slot] = old._replace(flags=flags)
            self._now.append(Change(slot, old.base_gfn, old.npages, old.userspace_addr, flags, self.as_id))


def _overlap(dels: list[FlatRange], adds: list[FlatRange]) -> bool:
    """QEMU's condition for stopping vCPUs, on sections as they are, not on whole pages."""
    i = j = 0
    while i < len(dels) and j < len(adds):
        if dels[i].end <= adds[j].start:
            i += 1
        elif adds[j].end <= dels[i].start:
            j += 1
        else:
            return True
    return False


def replaced(space: AddressSpace, after: AddressSpace) -> KvmListener:
    """A listener that has seen ``space``, and then the view of ``after`` in its place, though it is of another map.

    Regions are the same if their names, and the host memory behind a range, are. ``changes`` has the step last, if it
    is any.
    """
    listener = KvmListener()
    listener.begin(space)
    for section in space.view:
        listener.region_add(space, section)
    listener.commit(space)
    if not listener.changes:
        listener.changes.append([])
    old = {_identity(section) for section in space.view}
    new = {_identity(section) for section in after.view}
    listener.begin(space)
    for section in space.view:
        if _identity(section) not in new:
            listener.region_del(space, section)
    for section in after.view:
        if _identity(section) in old:
            listener.log_start(space, section, 0, section.dirty_log_mask)
        else:
            listener.region_add(space, section)
    listener.commit(space)
    return listener


def _identity(section: FlatRange) -> tuple[object, ...]:
    """What two sections have in common that are one for a listener."""
    return (*section[:2], section.region.name, section.region.userspace_addr, section.offset, section.kind)
