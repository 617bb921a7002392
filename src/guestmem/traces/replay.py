"""Every recorded change, checked against the slots that the changes before it left.

The checks are those of ``kvm_set_memory_region()`` (Linux ``virt/kvm/kvm_main.c``): a change that KVM would have
refused, yet is recorded as done, means that the trace is not of one VM from its start, or is damaged.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NoReturn

from ..errors import MemslotError, TraceError
from ..memslots.changes import Change, ChangeKind, classify
from ..memslots.slot import KVM_MEM_READONLY, KVM_MEM_SLOTS_NUM, Slot
from ..units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, format_frames
from .timeline import RecordedChange

__all__ = ["Replay"]

_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; a trace has a million."""

MAX_SIZE = ((1 << 31) - 1) << PAGE_SHIFT
"""KVM_MEM_MAX_NR_PAGES, in bytes: dirty bitmaps are indexed with an unsigned int."""
PAGE_MASK = PAGE_SIZE - 1
U32_MAX = (1 << 32) - 1


class _Space:
    """The slots of one address space, by frame."""

    __slots__ = ("bases", "slots")

    def __init__(self) -> None:
        self.bases: list[int] = []
        self.slots: list[Slot] = []

    def take(self, slot: Slot) -> None:
        """Remove a slot that is there."""
        i = bisect_right(self.bases, slot.base_gfn) - 1
        del self.bases[i], self.slots[i]

    def give(self, slot: Slot) -> Slot | None:
        """Insert a slot, unless it overlaps another one: then that one."""
        base = slot.base_gfn
        slots, bases = self.slots, self.bases
        i = bisect_right(bases, base)
        if i:
            before = slots[i - 1]
            if before.base_gfn + before.npages > base:
                return before
        if i < len(bases) and bases[i] < base + slot.npages:
            return slots[i]
        bases.insert(i, base)
        slots.insert(i, slot)
        return None


class Replay:
    """The slots so far, and the changes that made them.

    A change costs O(log n) comparisons, and moving at most as many list entries as there are slots.
    """

    __slots__ = ("_by_id", "_returned", "_spaces", "changes", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.changes: list[RecordedChange] = []
        self._by_id: dict[int, Slot] = {}
        self._spaces: dict[int, _Space] = {}
        self._returned: float | None = None
        """When QEMU's last call had returned."""

    def change(
        self,
        line: int,
        text: str,
        *,
        slot: int,
        flags: int,
        gpa: int,
        size: int,
        hva: int,
        ret: int,
        time: float | None,
        thread: int | None,
        began: float | None,
        ended: float | None,
        hides_delete: bool = False,
    ) -> None:
        """Check one recorded call, note it, and carry it out unless ``ret`` is negative.

        ``slot`` is the number as the ioctl takes it, with the address space in its upper half; ``gpa``, ``size`` and
        ``hva`` are bytes. With ``hides_delete`` a READONLY flip is two changes, as in QEMU, which also makes one call
        at a time (under its lock, as it prints the line): each began after the one before had returned.
        """
        if hides_delete and began is None and ended is not None:
            before = self._returned
            began = before if before is None or before <= ended else None
            self._returned = ended
        if (
            (gpa | size | hva) & PAGE_MASK
            or size > MAX_SIZE
            or gpa + size > U64_MAX
            or hva + size > U64_MAX
            or (slot | flags) > U32_MAX
            or slot & 0xFFFF >= KVM_MEM_SLOTS_NUM
        ):
            self._look_closely(line, text, slot, flags, gpa, size, hva, ret)
        as_id = slot >> 16
        npages = (size + PAGE_MASK) >> PAGE_SHIFT  # a refused size may be odd: never make a delete of it
        change = _new(Change, (slot & 0xFFFF, gpa >> PAGE_SHIFT, npages, hva, flags, as_id))
        old = self._by_id.get(slot)
        try:
            kind = classify(change, old)
        except MemslotError as error:
            if ret < 0:
                kind = ChangeKind.NOTHING
            elif hides_delete and old is not None and _flips_readonly(change, old):
                delete = change._replace(npages=0, flags=0)
                self._note((delete, ChangeKind.DELETE, old, line, self.path, time, thread, ret, True, began, None))
                self._spaces[as_id].take(old)
                began, old, kind = None, None, ChangeKind.CREATE
            else:
                self._refuse(f"KVM would have refused it ({error}), yet ret={ret}", line, text, starts_late=old is None)
        self._note((change, kind, old, line, self.path, time, thread, ret, False, began, ended))
        if ret < 0 or kind is ChangeKind.NOTHING:
            return
        if old is not None:
            self._spaces[as_id].take(old)
            if npages == 0:
                del self._by_id[slot]
                return
        space = self._spaces.get(as_id)
        if space is None:
            space = self._spaces[as_id] = _Space()
        new = _new(Slot, (as_id, slot & 0xFFFF, gpa >> PAGE_SHIFT, npages, hva, flags))
        other = space.give(new)
        if other is not None:
            message = (
                f"slot {new.id}: {format_frames(new.base_gfn, new.end_gfn)} overlaps slot {other.id} "
                f"{format_frames(other.base_gfn, other.end_gfn)}: KVM would have refused it (EEXIST), yet ret={ret}"
            )
            self._refuse(message, line, text)
        self._by_id[slot] = new

    def slots(self) -> tuple[Slot, ...]:
        """The slots as they are now, by address space and frame. O(n)."""
        return tuple(slot for as_id in sorted(self._spaces) for slot in self._spaces[as_id].slots)

    def _note(self, fields: tuple[object, ...]) -> None:
        self.changes.append(_new(RecordedChange, fields))

    def _refuse(self, message: str, line: int, text: str, *, starts_late: bool = False) -> NoReturn:
        if starts_late:
            message += "; does the trace begin after the VM did, or is it of two VMs?"
        raise TraceError(message, path=self.path, line=line, text=text)

    def _look_closely(
        self, line: int, text: str, slot: int, flags: int, gpa: int, size: int, hva: int, ret: int
    ) -> None:
        """Raise for the first field that cannot be, or that KVM would have refused, yet did not."""
        addresses = (("guest_phys_addr", gpa), ("memory_size", size), ("userspace_addr", hva))
        for name, value in (("slot", slot), ("flags", flags)):
            if value > U32_MAX:
                self._refuse(f"{name} {value:#x} has more than 32 bits", line, text)
        for name, value in addresses:
            if value > U64_MAX:
                self._refuse(f"{name} {value:#x} is past 2^64", line, text)
        if ret < 0:
            return
        for name, value in addresses:
            if value & PAGE_MASK:
                self._refuse(f"{name} {value:#x} is not a multiple of the page size {PAGE_SIZE:#x}", line, text)
        for name, value in (addresses[0], addresses[2]):
            if value + size > U64_MAX and (size or name == "guest_phys_addr"):
                self._refuse(f"{name} {value:#x} + memory_size {size:#x} reaches past 2^64 - 1", line, text)
        if size > MAX_SIZE:
            self._refuse(f"memory_size {size:#x} is more than {MAX_SIZE:#x}, the most a slot can have", line, text)
        if slot & 0xFFFF >= KVM_MEM_SLOTS_NUM:
            self._refuse(f"slot {slot & 0xFFFF}: below {KVM_MEM_SLOTS_NUM} is allowed, yet ret={ret}", line, text)


def _flips_readonly(change: Change, old: Slot) -> bool:
    """Whether the change is that of a READONLY flag and nothing but flags."""
    return (
        bool((change.flags ^ old.flags) & KVM_MEM_READONLY)
        and change.base_gfn == old.base_gfn
        and change.npages == old.npages
        and change.userspace_addr == old.userspace_addr
    )
