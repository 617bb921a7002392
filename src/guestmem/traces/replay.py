"""Every recorded change, checked against the slots that the changes before it left.

The checks are those of ``kvm_set_memory_region()`` (Linux ``virt/kvm/kvm_main.c``): a change that KVM would have
refused, yet is recorded as done, means that the trace is not of one VM, or is damaged.

A trace may begin after the VM did. Then a slot can be deleted that it never created; how large that was is told by
``--assume-slots``, or implied by what comes next: the creates that follow the delete with the same distance between
guest and host addresses. Such a slot is *assumed*, and said to be.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, NoReturn

from ..errors import MemslotError, TraceError
from ..memslots.changes import Change
from ..memslots.checks import classify
from ..memslots.slot import KVM_MEM_SLOTS_NUM, Slot
from ..units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, format_frames
from .columns import CODES, CREATE, DELETE, IMPLIED, NO_SLOT, NOTHING, REFUSED, Changes, Plain
from .late_start import AssumedSlot
from .region_fields import MAX_SIZE, U32_MAX, impossible_field
from .replay_space import PendingDelete, Space, flips_readonly, frames_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Replay"]

PAGE_MASK = PAGE_SIZE - 1


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
        self.changes = Changes(path)
        self.from_start = False
        self.assumed: dict[int, Slot] = {}
        self._by_id: dict[int, int] = {}
        """Who made each slot: see ``Changes.made_by``."""
        self._spaces: dict[int, Space] = {}
        self._returned: float | None = None
        """When QEMU's last call had returned."""
        self._from_file: set[int] = set()
        self._gone: set[int] = set()
        self._pending: list[PendingDelete] = []
        self._nameless: dict[tuple[int, int], AssumedSlot] = {}
        """Assumed slots of which the number is not known, by address space and first frame."""
        for each in assumed:
            slot = Slot(each.as_id, each.slot or 0, each.base_gfn, each.npages, each.userspace_addr or 0, each.flags)
            maker = self.changes.assume(slot)
            if each.slot is None:
                self._nameless[each.as_id, each.base_gfn] = each
            elif each.as_id << 16 | each.slot in self._by_id:
                self._refuse(f"--assume-slots: slot {each.slot} is there twice", 0, "")
            else:
                self._by_id[each.as_id << 16 | each.slot] = maker
                self._from_file.add(each.as_id << 16 | each.slot)
            other = self._spaces.setdefault(each.as_id, Space()).give(slot.base_gfn, slot.end_gfn, maker)
            if other is not None:
                message = f"--assume-slots: {frames_of(slot)} overlaps {frames_of(self.changes.made_by(other))}"
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
        if ret == 0 and self._is_plain(line, slot, flags, gpa, size, hva, thread, time, began, ended):
            return
        if (
            (gpa | size | hva) & PAGE_MASK
            or size > MAX_SIZE
            or gpa + size > U64_MAX
            or hva + size > U64_MAX
            or (slot | flags) > U32_MAX
            or slot & 0xFFFF >= KVM_MEM_SLOTS_NUM
        ):
            message = impossible_field(slot, flags, gpa, size, hva, ret)
            if message:
                self._refuse(message, line, text)
        changes = self.changes
        npages = (size + PAGE_MASK) >> PAGE_SHIFT  # a refused size may be odd: never make a delete of it
        base, maker = gpa >> PAGE_SHIFT, self._by_id.get(slot, NO_SLOT)
        if maker == NO_SLOT and self._nameless:
            maker = self._assumed_slot(slot, base, npages, hva, flags)
        elif maker != NO_SLOT and self._from_file and slot in self._from_file:
            self._from_file.discard(slot)
            self.assumed[len(changes)] = changes.made_by(maker)
        code = CREATE if maker == NO_SLOT else DELETE
        if (npages == 0) is (maker == NO_SLOT) or ret < 0:
            change = Change(slot & 0xFFFF, base, npages, hva, flags, slot >> 16)
            old = None if maker == NO_SLOT else changes.made_by(maker)
            try:
                code = CODES[classify(change, old)]
            except MemslotError as error:
                if ret >= 0 and old is None and npages == 0 and not self.from_start and slot not in self._gone:
                    self._late_delete(slot, gpa, hva)
                    changes.append(
                        slot, base, npages, hva, flags, DELETE, NO_SLOT, line, ret, thread, time, began, ended
                    )
                    return
                if ret < 0:
                    code = NOTHING
                elif hides_delete and old is not None and flips_readonly(change, old):
                    changes.append(slot, base, 0, hva, 0, DELETE | IMPLIED, maker, line, ret, thread, time, began, None)
                    self._spaces[slot >> 16].take(old.base_gfn)
                    began, maker, code = None, NO_SLOT, CREATE
                else:
                    self._refuse(
                        f"KVM would have refused it ({error}), yet ret={ret}", line, text, starts_late=old is None
                    )
        index = len(changes)
        changes.append(
            *(slot, base, npages, hva, flags, code if ret >= 0 else code | REFUSED, maker),
            *(line, ret, thread, time, began, ended),
        )
        if ret >= 0 and code != NOTHING:
            self._carry_out(index, slot, base, npages, hva, maker, line, text, ret)

    def _is_plain(
        self,
        line: int,
        slot: int,
        flags: int,
        gpa: int,
        size: int,
        hva: int,
        thread: int | None,
        time: float | None,
        began: float | None,
        ended: float | None,
    ) -> bool:
        """Note and carry out a change that KVM carried out, if it is plain as in ``take``; False if it is not."""
        maker = self._by_id.get(slot)
        odd = gpa | size | hva
        if (
            (maker is None) is (size == 0)
            or odd & PAGE_MASK
            or odd >> 62
            or size > MAX_SIZE
            or slot & 0xFFFF >= KVM_MEM_SLOTS_NUM
            or (slot | flags) > U32_MAX
            or self._pending
            or self._nameless
            or self._from_file
        ):
            return False
        as_id, base, npages = slot >> 16, gpa >> PAGE_SHIFT, size >> PAGE_SHIFT
        changes = self.changes
        if maker is None:
            space = self._spaces.get(as_id)
            if space is None:
                space = self._spaces[as_id] = Space()
            index = len(changes.code)
            if space.give(base, base + npages, index) is not None:
                return False
            self._by_id[slot] = index
            changes.append(slot, base, npages, hva, flags, CREATE, NO_SLOT, line, 0, thread, time, began, ended)
        else:
            self._spaces[as_id].take(self._base_of(maker))
            del self._by_id[slot]
            self._gone.add(slot)
            changes.append(slot, base, 0, hva, flags, DELETE, maker, line, 0, thread, time, began, ended)
        return True

    def take(self, lines: Sequence[int], plain: Plain, at: int = 0) -> int:
        """Carry out the changes of ``plain`` from ``at`` on, up to one that is not plain; how many were carried out.

        They stand on ``lines``, of which the first is that of ``at``. Plain are the create of a slot that is not
        there and the delete of one that is, which no slot is in the way of. As QEMU's, they are made one at a time.
        """
        if self._returned is not None and plain.times[at] < self._returned:
            return 0
        plain = plain.part(at, len(plain.slots) - at)
        codes, olds = self._carry_out_plain(plain)
        count = len(codes)
        if count:
            times = plain.times[:count]
            began = array("d", (math.nan if self._returned is None else self._returned,)) + times[:-1]
            self._returned = times[-1]
            self.changes.extend(plain.part(0, count), codes, olds, lines[:count], began, times)
        return count

    def take_calls(self, lines: array[int], plain: Plain, ended: array[float]) -> int:
        """The same of changes of which the times are those of their begin, and which line each stands on is told."""
        codes, olds = self._carry_out_plain(plain)
        count = len(codes)
        began = plain.times[:count]
        self.changes.extend(plain.part(0, count), codes, olds, lines[:count], began, ended[:count])
        return count

    def _carry_out_plain(self, plain: Plain) -> tuple[bytearray, list[int]]:
        """Carry out changes up to one that is not plain: their codes, and what each took the place of."""
        codes = bytearray()
        olds: list[int] = []
        if self._pending or self._nameless or self._from_file:
            return codes, olds
        bases, by_id, gone = plain.bases, self._by_id, self._gone
        index = first = len(self.changes)
        as_id = -1
        for slot, base, count in zip(plain.slots, bases, plain.npages, strict=True):
            if slot >> 16 != as_id:
                as_id = slot >> 16
                space = self._spaces.setdefault(as_id, Space())
                starts, ends, makers = space.bases, space.ends, space.makers
            maker = by_id.get(slot)
            if count:
                if maker is not None:
                    break
                i = bisect_right(starts, base)
                if (i and ends[i - 1] > base) or (i < len(starts) and starts[i] < base + count):
                    break
                starts.insert(i, base)
                ends.insert(i, base + count)
                makers.insert(i, index)
                by_id[slot] = index
                codes.append(CREATE)
                olds.append(NO_SLOT)
            else:
                if maker is None:
                    break
                was = bases[maker - first] if maker >= first else self._base_of(maker)
                i = bisect_right(starts, was) - 1
                if i < 0 or starts[i] != was:
                    break
                del starts[i], ends[i], makers[i], by_id[slot]
                gone.add(slot)
                codes.append(DELETE)
                olds.append(maker)
            index += 1
        return codes, olds

    def _base_of(self, maker: int) -> int:
        return self.changes.base[maker] if maker > NO_SLOT else self.changes.made_by(maker).base_gfn

    def _carry_out(
        self, index: int, slot: int, base: int, npages: int, hva: int, maker: int, line: int, text: str, ret: int
    ) -> None:
        """Change ``index``: take away what ``maker`` made, if there was something, and give what it makes."""
        as_id = slot >> 16
        if maker != NO_SLOT:
            self._spaces[as_id].take(self._base_of(maker))
            if npages == 0:
                del self._by_id[slot]
                self._gone.add(slot)
                if self._pending:
                    self._settle(as_id)
                return
        space = self._spaces.get(as_id)
        if space is None:
            space = self._spaces[as_id] = Space()
        other = space.give(base, base + npages, index)
        if other is not None:
            there = self.changes.made_by(other)
            message = (
                f"slot {slot & 0xFFFF}: {format_frames(base, base + npages)} overlaps slot {there.id} "
                f"{frames_of(there)}: KVM would have refused it (EEXIST), yet ret={ret}"
            )
            self._refuse(message, line, text)
        self._by_id[slot] = index
        for each in self._pending:
            if each.as_id == as_id:
                each.take(slot & 0xFFFF, base << PAGE_SHIFT, npages << PAGE_SHIFT, hva)

    def finish(self) -> None:
        """The trace is over: what is still not known of assumed slots is one page."""
        for each in self._pending:
            self._settle(each.as_id, last=True)

    def allows(self, *, slot: int, gpa: int, size: int, hva: int, ret: int, **_: object) -> bool:
        """Whether the change could be this VM's, from a thread that has issued none. O(log n)."""
        old = self._slot(slot)
        if ret < 0:
            return True
        if size == 0:
            return old is not None and (not hva or old.userspace_addr == hva)
        if old is not None:
            return old.userspace_addr == hva and old.npages == size >> PAGE_SHIFT
        space = self._spaces.get(slot >> 16)
        return space is None or space.meets(gpa >> PAGE_SHIFT, (gpa + size) >> PAGE_SHIFT) is None

    def holds(self, *, slot: int, hva: int, **_: object) -> bool:
        """Whether the VM has this slot, on this host memory. O(1)."""
        old = self._slot(slot)
        return old is not None and old.userspace_addr == hva

    def starts_over(self, *, slot: int, gpa: int, size: int, hva: int, **_: object) -> bool:
        """Whether the change makes a slot that is there already, on other host memory: then it is another VM's."""
        old = self._slot(slot)
        return old is not None and size > 0 and old.userspace_addr != hva and old.base_gfn == gpa >> PAGE_SHIFT

    def _slot(self, slot: int) -> Slot | None:
        """The slot of this number, as it is now."""
        maker = self._by_id.get(slot)
        return None if maker is None else self.changes.made_by(maker)

    def _assumed_slot(self, slot: int, base: int, npages: int, hva: int, flags: int) -> int:
        """The assumed slot that a change is about, if its number was not known so far: now it is."""
        as_id = slot >> 16
        each = self._nameless.get((as_id, base))
        if each is None or (npages and npages != each.npages):
            return NO_SLOT
        del self._nameless[as_id, base]
        old = Slot(as_id, slot & 0xFFFF, base, each.npages, hva, flags if npages else each.flags)
        maker = self.changes.assume(old)
        self._spaces[as_id].take(base)
        self._spaces[as_id].give(base, old.end_gfn, maker)
        self._by_id[slot] = maker
        self.assumed[len(self.changes)] = old
        return maker

    def _late_delete(self, slot: int, gpa: int, hva: int) -> None:
        """The delete of a slot that was there before the trace began, which is the next change."""
        self._gone.add(slot)
        self._settle(slot >> 16)
        self._pending.append(PendingDelete(len(self.changes), slot >> 16, slot & 0xFFFF, gpa, hva))

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
            self.changes.old[each.index] = self.changes.assume(old)
            self.assumed[each.index] = old
        self._pending = left

    def untouched(self) -> tuple[AssumedSlot, ...]:
        """The assumed slots that no change was about."""
        named = (self.changes.made_by(self._by_id[slot]) for slot in sorted(self._from_file))
        known = [
            AssumedSlot(each.as_id, each.id, each.base_gfn, each.npages, each.userspace_addr or None, each.flags)
            for each in named
        ]
        return (*known, *(self._nameless[key] for key in sorted(self._nameless)))

    def _refuse(self, message: str, line: int, text: str, *, starts_late: bool = False) -> NoReturn:
        if starts_late:
            message += "; is the trace of two VMs, or damaged?"
        raise TraceError(message, path=self.path, line=line, text=text)
