"""Every recorded change, checked against the slots that the changes before it left.

The checks are those of ``kvm_set_memory_region()`` (Linux ``virt/kvm/kvm_main.c``): a change that KVM would have
refused, yet is recorded as done, means that the trace is not of one VM, or is damaged.

A trace may begin after the VM did. Then a slot can be deleted that it never created; how large that was is told by
``--assume-slots``, or implied by what comes next: the creates that follow the delete with the same distance between
guest and host addresses. Such a slot is *assumed*, and said to be.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NoReturn

from ..errors import MemslotError, TraceError
from ..memslots.changes import Change, ChangeKind, classify
from ..memslots.slot import KVM_MEM_READONLY, KVM_MEM_SLOTS_NUM, Slot
from ..units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, format_frames
from .timeline import RecordedChange

if TYPE_CHECKING:
    from .late_start import AssumedSlot

__all__ = ["Replay"]

_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; a trace has a million."""

MAX_SIZE = ((1 << 31) - 1) << 16
"""KVM_MEM_MAX_NR_PAGES in bytes, with the largest pages (arm64, 64 KiB): dirty bitmaps have unsigned int indices."""
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

    def meets(self, base: int, npages: int) -> Slot | None:
        """A slot that has one of the frames, or None."""
        i = bisect_right(self.bases, base)
        if i and self.slots[i - 1].end_gfn > base:
            return self.slots[i - 1]
        return self.slots[i] if i < len(self.bases) and self.bases[i] < base + npages else None

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


class _Pending:
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


class Replay:
    """The slots so far, and the changes that made them.

    A change costs O(log n) comparisons, and moving at most as many list entries as there are slots. ``from_start``
    says that the trace has the VM from its creation on, so that nothing is assumed. ``assumed`` maps the index of each
    delete of an assumed slot to that slot.
    """

    __slots__ = (
        "_by_id",
        "_from_file",
        "_gone",
        "_nameless",
        "_pending",
        "_returned",
        "_spaces",
        "assumed",
        "changes",
        "from_start",
        "path",
    )

    def __init__(self, path: str, assumed: tuple[AssumedSlot, ...] = ()) -> None:
        self.path = path
        self.changes: list[RecordedChange] = []
        self.from_start = False
        self.assumed: dict[int, Slot] = {}
        self._by_id: dict[int, Slot] = {}
        self._spaces: dict[int, _Space] = {}
        self._returned: float | None = None
        """When QEMU's last call had returned."""
        self._from_file: set[int] = set()
        self._gone: set[int] = set()
        self._pending: list[_Pending] = []
        self._nameless: dict[tuple[int, int], AssumedSlot] = {}
        """Assumed slots of which the number is not known, by address space and first frame."""
        for each in assumed:
            slot = Slot(each.as_id, each.slot or 0, each.base_gfn, each.npages, each.userspace_addr or 0, each.flags)
            if each.slot is None:
                self._nameless[each.as_id, each.base_gfn] = each
            elif each.as_id << 16 | each.slot in self._by_id:
                self._refuse(f"--assume-slots: slot {each.slot} is there twice", 0, "")
            else:
                self._by_id[each.as_id << 16 | each.slot] = slot
                self._from_file.add(each.as_id << 16 | each.slot)
            other = self._spaces.setdefault(each.as_id, _Space()).give(slot)
            if other is not None:
                message = f"--assume-slots: {_frames_of(slot)} overlaps {_frames_of(other)}"
                self._refuse(message, 0, "")

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
        base, slot_id = gpa >> PAGE_SHIFT, slot & 0xFFFF  # made once: a trace has a million
        change = _new(Change, (slot_id, base, npages, hva, flags, as_id))
        old = self._by_id.get(slot)
        if old is None and self._nameless:
            old = self._assumed_slot(slot, change)
        elif self._from_file and old is not None and slot in self._from_file:
            self._from_file.discard(slot)
            self.assumed[len(self.changes)] = old
        try:
            kind = classify(change, old)
        except MemslotError as error:
            if ret >= 0 and old is None and npages == 0 and not self.from_start and slot not in self._gone:
                self._late_delete(change, slot, (line, self.path, time, thread, ret, False, began, ended))
                return
            if ret < 0:
                kind = ChangeKind.NOTHING
            elif hides_delete and old is not None and _flips_readonly(change, old):
                delete = change._replace(npages=0, flags=0)
                self._note((delete, ChangeKind.DELETE, old, line, self.path, time, thread, ret, True, began, None))
                self._spaces[as_id].take(old)
                began, old, kind = None, None, ChangeKind.CREATE
            else:
                self._refuse(f"KVM would have refused it ({error}), yet ret={ret}", line, text, starts_late=old is None)
        self.changes.append(
            _new(RecordedChange, (change, kind, old, line, self.path, time, thread, ret, False, began, ended))
        )
        if ret < 0 or kind is ChangeKind.NOTHING:
            return
        if old is not None:
            self._spaces[as_id].take(old)
            if npages == 0:
                del self._by_id[slot]
                self._gone.add(slot)
                if self._pending:
                    self._settle(as_id)
                return
        space = self._spaces.get(as_id)
        if space is None:
            space = self._spaces[as_id] = _Space()
        new = _new(Slot, (as_id, slot_id, base, npages, hva, flags))
        other = space.give(new)
        if other is not None:
            message = (
                f"slot {new.id}: {format_frames(new.base_gfn, new.end_gfn)} overlaps slot {other.id} "
                f"{format_frames(other.base_gfn, other.end_gfn)}: KVM would have refused it (EEXIST), yet ret={ret}"
            )
            self._refuse(message, line, text)
        self._by_id[slot] = new
        if self._pending:
            for each in self._pending:
                if each.as_id == as_id:
                    each.take(slot_id, gpa, size, hva)

    def finish(self) -> None:
        """The trace is over: what is still not known of assumed slots is one page."""
        for each in self._pending:
            self._settle(each.as_id, last=True)

    def allows(self, *, slot: int, gpa: int, size: int, hva: int, flags: int, ret: int, **_: object) -> bool:
        """Whether the change could be this VM's, from a thread that has issued none. O(log n)."""
        old = self._by_id.get(slot)
        if ret < 0:
            return True
        if size == 0:
            return old is not None and (not hva or old.userspace_addr == hva)
        if old is not None:
            return old.userspace_addr == hva and old.npages == size >> PAGE_SHIFT
        space = self._spaces.get(slot >> 16)
        del flags
        return space is None or space.meets(gpa >> PAGE_SHIFT, size >> PAGE_SHIFT) is None

    def holds(self, *, slot: int, hva: int, **_: object) -> bool:
        """Whether the VM has this slot, on this host memory. O(1)."""
        old = self._by_id.get(slot)
        return old is not None and old.userspace_addr == hva

    def starts_over(self, *, slot: int, gpa: int, size: int, hva: int, **_: object) -> bool:
        """Whether the change makes a slot that is there already, on other host memory: then it is another VM's."""
        old = self._by_id.get(slot)
        return old is not None and size > 0 and old.userspace_addr != hva and old.base_gfn == gpa >> PAGE_SHIFT

    def _assumed_slot(self, slot: int, change: Change) -> Slot | None:
        """The assumed slot that ``change`` is about, if its number was not known so far: now it is."""
        each = self._nameless.get((change.as_id, change.base_gfn))
        if each is None or (change.npages and change.npages != each.npages):
            return None
        del self._nameless[each.as_id, each.base_gfn]
        flags = change.flags if change.npages else each.flags
        old = Slot(each.as_id, change.slot, each.base_gfn, each.npages, change.userspace_addr, flags)
        self._spaces[each.as_id].take(old)
        self._spaces[each.as_id].give(old)
        self._by_id[slot] = old
        self.assumed[len(self.changes)] = old
        return old

    def _late_delete(self, change: Change, slot: int, rest: tuple[object, ...]) -> None:
        """The delete of a slot that was there before the trace began."""
        self._gone.add(slot)
        self._settle(change.as_id)
        gpa, hva = change.base_gfn << PAGE_SHIFT, change.userspace_addr
        self._pending.append(_Pending(len(self.changes), change.as_id, change.slot, gpa, hva))
        self._note((change, ChangeKind.DELETE, None, *rest))

    def _settle(self, as_id: int, *, last: bool = False) -> None:
        """Deletes of assumed slots of which creates have told the size are done; all of them if this is the end."""
        left = []
        for each in self._pending:
            if each.as_id != as_id or not (each.end or last):
                left.append(each)
                continue
            npages = (each.end - each.start) >> PAGE_SHIFT or 1
            start = each.start if each.end else each.gpa
            old = Slot(as_id, each.slot, start >> PAGE_SHIFT, npages, each.hva, 0)
            self.changes[each.index] = self.changes[each.index]._replace(old=old)
            self.assumed[each.index] = old
        self._pending = left

    def slots(self) -> tuple[Slot, ...]:
        """The slots as they are now, by address space and frame. O(n)."""
        return tuple(slot for as_id in sorted(self._spaces) for slot in self._spaces[as_id].slots)

    def _note(self, fields: tuple[object, ...]) -> None:
        self.changes.append(_new(RecordedChange, fields))

    def _refuse(self, message: str, line: int, text: str, *, starts_late: bool = False) -> NoReturn:
        if starts_late:
            message += "; is the trace of two VMs, or damaged?"
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


def _frames_of(slot: Slot) -> str:
    return format_frames(slot.base_gfn, slot.end_gfn)


def _flips_readonly(change: Change, old: Slot) -> bool:
    """Whether the change is that of a READONLY flag and nothing but flags."""
    return (
        bool((change.flags ^ old.flags) & KVM_MEM_READONLY)
        and change.base_gfn == old.base_gfn
        and change.npages == old.npages
        and change.userspace_addr == old.userspace_addr
    )
