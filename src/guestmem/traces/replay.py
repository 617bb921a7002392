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

MAX_NPAGES = (1 << 31) - 1
"""KVM_MEM_MAX_NR_PAGES: dirty bitmaps are indexed with an unsigned int."""


class Replay:
    """The slots so far, and the changes that made them.

    A change costs O(log n) comparisons, and moving at most as many list entries as there are slots.
    """

    __slots__ = ("_bases", "_by_id", "_sorted", "changes", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.changes: list[RecordedChange] = []
        self._by_id: dict[int, Slot] = {}
        self._bases: dict[int, list[int]] = {}
        self._sorted: dict[int, list[Slot]] = {}

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
        ``hva`` are bytes. With ``hides_delete`` a READONLY flip is two changes, as in QEMU.
        """
        if size and (gpa > U64_MAX or size > U64_MAX or hva > U64_MAX or gpa + size > U64_MAX or hva + size > 1 << 64):
            self._refuse(line, text, gpa, size, hva)
        if slot >= 1 << 32 or flags >= 1 << 32 or gpa > U64_MAX or hva > U64_MAX:
            raise TraceError("slot and flags have 32 bits, addresses 64", path=self.path, line=line, text=text)
        as_id, slot_id = slot >> 16, slot & 0xFFFF
        if ret >= 0 and ((gpa | size | hva) & (PAGE_SIZE - 1) or size >> PAGE_SHIFT > MAX_NPAGES):
            self._refuse(line, text, gpa, size, hva)
        if ret >= 0 and slot_id >= KVM_MEM_SLOTS_NUM:
            message = f"slot {slot_id} is not below {KVM_MEM_SLOTS_NUM}, yet ret={ret}"
            raise TraceError(message, path=self.path, line=line, text=text)
        npages = (size + PAGE_SIZE - 1) >> PAGE_SHIFT  # a refused size may be odd: never make a delete of it
        change = Change(slot_id, gpa >> PAGE_SHIFT, npages, hva, flags, as_id)
        old = self._by_id.get(slot)
        try:
            kind = classify(change, old)
        except MemslotError as error:
            if hides_delete and ret >= 0 and old is not None and _flips_readonly(change, old):
                delete = Change(slot_id, change.base_gfn, 0, hva, 0, as_id)
                self._note(delete, ChangeKind.DELETE, old, line, time, thread, ret, True, began, None)
                self._take(slot, old)
                began, old, kind = None, None, ChangeKind.CREATE
            elif ret < 0:
                kind = ChangeKind.NOTHING
            else:
                message = f"KVM would have refused it ({error}), yet ret={ret}"
                if old is None:
                    message += "; does the trace begin after the VM did, or is it of two VMs?"
                raise TraceError(message, path=self.path, line=line, text=text) from None
        self._note(change, kind, old, line, time, thread, ret, False, began, ended)
        if ret < 0 or kind is ChangeKind.NOTHING:
            return
        if kind is ChangeKind.FLAGS_ONLY:
            assert old is not None
            self._take(slot, old)
            self._give(slot, change.as_slot())
            return
        if old is not None:
            self._take(slot, old)
        if kind is not ChangeKind.DELETE:
            new = change.as_slot()
            other = self._overlapping(new)
            if other is not None:
                message = (
                    f"slot {slot_id}: {format_frames(new.base_gfn, new.end_gfn)} overlaps slot {other.id} "
                    f"{format_frames(other.base_gfn, other.end_gfn)}: KVM would have refused it (EEXIST), yet ret={ret}"
                )
                raise TraceError(message, path=self.path, line=line, text=text)
            self._give(slot, new)

    def slots(self) -> tuple[Slot, ...]:
        """The slots as they are now, by address space and frame. O(n)."""
        return tuple(slot for as_id in sorted(self._sorted) for slot in self._sorted[as_id])

    def forget(self) -> None:
        """Begin anew without any slot: the VM is gone."""
        self._by_id.clear()
        self._bases.clear()
        self._sorted.clear()

    def _note(
        self,
        change: Change,
        kind: ChangeKind,
        old: Slot | None,
        line: int,
        time: float | None,
        thread: int | None,
        ret: int,
        implied: bool,
        began: float | None,
        ended: float | None,
    ) -> None:
        self.changes.append(
            RecordedChange(change, kind, old, line, self.path, time, thread, ret, implied, began, ended)
        )

    def _take(self, key: int, slot: Slot) -> None:
        del self._by_id[key]
        bases = self._bases[slot.as_id]
        i = bisect_right(bases, slot.base_gfn) - 1
        del bases[i], self._sorted[slot.as_id][i]

    def _give(self, key: int, slot: Slot) -> None:
        self._by_id[key] = slot
        bases = self._bases.setdefault(slot.as_id, [])
        i = bisect_right(bases, slot.base_gfn)
        bases.insert(i, slot.base_gfn)
        self._sorted.setdefault(slot.as_id, []).insert(i, slot)

    def _overlapping(self, new: Slot) -> Slot | None:
        bases = self._bases.get(new.as_id)
        if not bases:
            return None
        slots = self._sorted[new.as_id]
        i = bisect_right(bases, new.base_gfn)
        if i and slots[i - 1].end_gfn > new.base_gfn:
            return slots[i - 1]
        if i < len(slots) and bases[i] < new.end_gfn:
            return slots[i]
        return None

    def _refuse(self, line: int, text: str, gpa: int, size: int, hva: int) -> NoReturn:
        """Raise for the first field that cannot be."""
        message = ""
        for name, value in (("guest_phys_addr", gpa), ("memory_size", size), ("userspace_addr", hva)):
            if value > U64_MAX:
                message = message or f"{name} {value:#x} is past 2^64"
            elif value & (PAGE_SIZE - 1):
                message = message or f"{name} {value:#x} is not a multiple of the page size {PAGE_SIZE:#x}"
        if not message and gpa + size > U64_MAX:
            message = f"guest_phys_addr {gpa:#x} + memory_size {size:#x} reaches past 2^64 - 1"
        elif not message and hva + size > 1 << 64:
            message = f"userspace_addr {hva:#x} + memory_size {size:#x} reaches past 2^64"
        elif not message:
            message = f"memory_size {size:#x} is more than {MAX_NPAGES:#x} pages, the most a slot can have"
        raise TraceError(message, path=self.path, line=line, text=text)


def _flips_readonly(change: Change, old: Slot) -> bool:
    """Whether the change is that of a READONLY flag and nothing but flags."""
    return (
        bool((change.flags ^ old.flags) & KVM_MEM_READONLY)
        and change.base_gfn == old.base_gfn
        and change.npages == old.npages
        and change.userspace_addr == old.userspace_addr
    )
