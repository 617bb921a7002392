"""All slots of a VM: two sets per address space, of which readers use one while an update edits the other.

Readers never lock: vCPUs call the compiled functions of ``lookup`` inside an SRCU section, Python threads the methods
here. An update edits the inactive set, publishes it by one store, waits for readers, and brings the other up to date.
Idea: ``struct kvm_memslots`` and its swap, Linux since 5.17, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import errno
import itertools
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..compiled import INTERPRETED, Own, own
from ..errors import MemslotError, UsageError
from ..notebook import SHOWN, html_table
from ..rcu.srcu import Srcu
from ..units import U64_MAX, format_frames
from .batch import EffectRoom
from .changes import KINDS, Change, ChangeKind
from .edit import NOTHING
from .invariants import check_memslots
from .layout import (
    ASKED_SLOT,
    COUNT,
    FIRST_FIELD,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    PHASE,
    RECORD_WORDS,
    SLOT_WORDS,
    active_set,
    generation,
    geometry,
    new_memslots,
)
from .lookup import CURSOR_WORDS, copy_by_id, copy_find, copy_slots
from .phases import FIRST_REASON, MARKS_SWAPPED, NO_SLOT, SWAPPED, bring, hand_over, settle, slot_at, stage_asked
from .refusal import refusal
from .slot import KVM_MEM_SLOTS_NUM, KVM_USER_MEM_SLOTS, Slot
from .update import Update, end_update
from .whole import UNFINISHED, change_at_once, swap_at_once

__all__ = ["Memslots", "Update"]

_INTERNAL = KVM_MEM_SLOTS_NUM - KVM_USER_MEM_SLOTS
_FRAMES = 1 << 52
_UNFINISHED = int(UNFINISHED)
_FIRST_FIELD, _SLOT_WORDS = int(FIRST_FIELD), int(SLOT_WORDS)
_ASKED, _ASKED_AT = struct.Struct(f"={len(Change._fields) + 1}Q"), 8 * int(ASKED_SLOT)
_new = tuple.__new__
_COPIED = 16  # slots that a range query's first try has room for


def _plainly(desk: Own, at: int, *words: int) -> None:
    """As ``Struct.pack_into``, in whatever ``explore`` gives a thread as its own words."""
    for word, value in enumerate(words, at // 8):
        desk[word] = value


_write_asked: Callable[..., None] = _plainly if INTERPRETED else _ASKED.pack_into


def _one_at_a_time(lock: threading.Lock, function: Callable[..., Any]) -> Callable[..., Any]:
    def locked(*arguments: Any) -> Any:
        with lock:
            return function(*arguments)

    return locked


class Memslots:
    """The slots of a VM. About 300 bytes a slot; nothing is committed for slots that do not exist.

    ``words`` is what the compiled functions take as ``memslots``, ``srcu`` what readers enter; reader 0 is Python's,
    used inside each lookup here. Changes refused raise MemslotError with the kernel's errno and change nothing.

    >>> memslots = Memslots()
    >>> memslots.create(0, base_gfn=0, npages=160, userspace_addr=0x7F0000000000)
    >>> memslots.create(1, base_gfn=256, npages=768, userspace_addr=0x7F0000100000)
    >>> memslots.find(300)
    Slot 1 [0x100000, 0x400000) 3 MiB -> 0x7f0000100000
    >>> memslots.find(200) is None
    True
    >>> [slot.id for slot in memslots.overlapping(100, 256)], memslots.generation()
    ([0], 2)
    >>> memslots.delete(0), len(memslots), memslots.generation()
    (None, 1, 4)
    >>> memslots.check()
    """

    def __init__(
        self,
        address_spaces: int = 1,
        srcu: Srcu | None = None,
        max_slots: int = KVM_USER_MEM_SLOTS,
        *,
        node_words: int = 64,
    ) -> None:
        self.geometry = geometry(address_spaces, max_slots + _INTERNAL, node_words)
        self.address_spaces, self.max_slots, self.ids = address_spaces, max_slots, max_slots + _INTERNAL
        self.words, self.desk = new_memslots(self.geometry)
        self.desks = [self.desk]
        """One for each address space that one update changed beside another; ``desk`` is the one in use."""
        self.srcu = Srcu(readers=1) if srcu is None else srcu
        self.slots_lock = threading.Lock()
        """Held by the one updater; time spent in ``update()`` is time spent waiting for it."""
        self._cells = self.words.cells if INTERPRETED else memoryview(self.words)  # type: ignore[arg-type] # an ndarray
        self._spare = [self._room()]
        self.effect_room: EffectRoom | None = None
        self.batch_room: Own | None = None
        """Words in which changes of a batch are handed over; used under ``slots_lock``."""
        self._copy_find, self._copy_by_id, self._copy_slots = copy_find, copy_by_id, copy_slots
        if (
            INTERPRETED
        ):  # a compiled call holds the GIL throughout, so reader 0 is in one section at a time; these do not
            lock = threading.Lock()
            self._copy_find, self._copy_by_id, self._copy_slots = (
                _one_at_a_time(lock, function) for function in (copy_find, copy_by_id, copy_slots)
            )

    @staticmethod
    def _room(slots: int = _COPIED) -> tuple[Own, memoryview]:
        made = own(CURSOR_WORDS + _SLOT_WORDS * slots)
        return made, memoryview(made)  # type: ignore[arg-type] # an ndarray or a memoryview

    def _space(self, as_id: int) -> int:
        if not 0 <= as_id < self.address_spaces:
            raise MemslotError(errno.EINVAL, f"as_id: {as_id} is not in 0..{self.address_spaces - 1}")
        return as_id

    def slot_of(self, record: int) -> Slot:
        """The slot of a record that cannot be reused meanwhile (inside an SRCU section, or under ``slots_lock``)."""
        if INTERPRETED:  # a model's thread finds what it wrote itself by atomics only
            return slot_at(self.words, record)
        first = record * RECORD_WORDS + _FIRST_FIELD
        return _new(Slot, self._cells[first : first + _SLOT_WORDS].tolist())

    # Lookups: from any thread, without a lock. What a compiled call copies comes from one set.

    def find(self, gfn: int, as_id: int = 0) -> Slot | None:
        """The slot that holds frame ``gfn``, or None. O(log n)."""
        if gfn >> 64 or as_id >> 64 or as_id >= self.address_spaces:
            raise self._no_word("gfn", gfn, as_id)
        try:
            room = self._spare.pop()
        except IndexError:  # another thread is at it
            room = self._room()
        slot = None
        if self._copy_find(self.words, self.srcu.words, as_id, gfn, room[0]):
            slot = _new(Slot, room[1][:_SLOT_WORDS].tolist())
        self._spare.append(room)
        return slot

    def by_id(self, slot_id: int, as_id: int = 0) -> Slot | None:
        """Slot ``slot_id``, or None. O(1)."""
        if slot_id >> 64 or as_id >> 64 or as_id >= self.address_spaces:
            raise self._no_word("slot", slot_id, as_id)
        try:
            room = self._spare.pop()
        except IndexError:
            room = self._room()
        slot = None
        if self._copy_by_id(self.words, self.srcu.words, as_id, slot_id, room[0]):
            slot = _new(Slot, room[1][:_SLOT_WORDS].tolist())
        self._spare.append(room)
        return slot

    def by_hva(self, start: int, end: int, as_id: int = 0) -> list[Slot]:
        """Slots whose host bytes overlap ``[start, end)``, by (userspace_addr, id). O(log n + k)."""
        return self._range(start, end, as_id, by_hva=True)

    def overlapping(self, start_gfn: int, end_gfn: int, as_id: int = 0) -> Iterator[Slot]:
        """Slots that overlap ``[start_gfn, end_gfn)``, ascending, all of one set; none if it is empty. O(log n + k).

        >>> memslots = Memslots()
        >>> memslots.create(0, base_gfn=1, npages=1, userspace_addr=0)
        >>> memslots.create(1, base_gfn=3, npages=2, userspace_addr=0)
        >>> [slot.id for slot in memslots.overlapping(2, 4)], list(memslots.overlapping(4, 4))
        ([1], [])
        """
        return iter(self._range(start_gfn, end_gfn, as_id, by_hva=False))

    def intersections(self, start_gfn: int, end_gfn: int, as_id: int = 0) -> Iterator[tuple[Slot, int, int]]:
        """As ``overlapping``, with the frames ``[start, end)`` that slot and range share."""
        for slot in self.overlapping(start_gfn, end_gfn, as_id):
            yield slot, max(start_gfn, slot.base_gfn), min(end_gfn, slot.end_gfn)

    def __iter__(self) -> Iterator[Slot]:
        """All slots, by address space and frame."""
        for as_id in range(self.address_spaces):
            yield from self.overlapping(0, _FRAMES, as_id)

    def __len__(self) -> int:
        """Number of slots of all address spaces."""
        return sum(self._cells[int(active_set(self.words, as_id) + COUNT)] for as_id in range(self.address_spaces))

    def __repr__(self) -> str:
        return f"Memslots({len(self)} slot{'s' * (len(self) != 1)})"

    def _repr_html_(self) -> str:
        """For a notebook: slots by address space and frame."""
        slots = list(itertools.islice(self, SHOWN))
        rows = [
            (
                f"{slot.as_id}:{slot.id}" if slot.as_id else str(slot.id),
                format_frames(slot.base_gfn, slot.end_gfn),
                f"{slot.userspace_addr:#x}",
                " ".join(name for name, has in (("ro", slot.readonly), ("log", slot.logs_dirty_pages)) if has),
            )
            for slot in slots
        ]
        return html_table(("slot", "frames", "host memory", "flags"), rows, len(self) - len(rows), caption=repr(self))

    def generation(self, as_id: int = 0) -> int:
        """Generation of the active set; bit 63 is set while an update's grace period runs."""
        return int(generation(self.words, active_set(self.words, self._space(as_id))))

    @property
    def updating(self) -> bool:
        """Whether some set is published and its grace period not over."""
        return any(
            self.generation(as_id) & int(KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS) for as_id in range(self.address_spaces)
        )

    def _range(self, start: int, end: int, as_id: int, *, by_hva: bool) -> list[Slot]:
        if (start | end) >> 64:
            raise self._no_word("start" if start >> 64 else "end", start if start >> 64 else end, as_id)
        self._space(as_id)
        try:
            room = self._spare.pop()
        except IndexError:
            room = self._room()
        while True:
            count = self._copy_slots(self.words, self.srcu.words, as_id, start, end, by_hva, room[0])
            if CURSOR_WORDS + _SLOT_WORDS * count <= len(room[1]):
                break
            room = self._room(count + _COPIED)
        numbers = room[1][CURSOR_WORDS : CURSOR_WORDS + _SLOT_WORDS * count].tolist()
        if len(room[1]) <= CURSOR_WORDS + _SLOT_WORDS * _COPIED:
            self._spare.append(room)
        return [_new(Slot, numbers[at : at + _SLOT_WORDS]) for at in range(0, _SLOT_WORDS * count, _SLOT_WORDS)]

    def _no_word(self, name: str, value: int, as_id: int) -> MemslotError:
        if value >> 64:
            return MemslotError(errno.EINVAL, f"{name}: {value} is not in 0..{U64_MAX:#x}")
        return MemslotError(errno.EINVAL, f"as_id: {as_id} is not in 0..{self.address_spaces - 1}")

    # Whole updates, as KVM does them: one swap to create or to change flags, two to delete or to move.

    def create(
        self,
        slot: int,
        base_gfn: int,
        npages: int,
        userspace_addr: int,
        flags: int = 0,
        as_id: int = 0,
        *,
        internal: bool = False,
    ) -> None:
        """Create a slot; EEXIST if it exists or overlaps another. ``internal`` allows KVM's own ids. O(log n)."""
        self._change(Change(slot, base_gfn, npages, userspace_addr, flags, as_id), internal=internal, create=True)

    def delete(self, slot: int, as_id: int = 0, *, internal: bool = False) -> None:
        """Delete a slot; EINVAL if there is none. O(log n)."""
        self._change(Change(slot, as_id=as_id), internal=internal)

    def move(self, slot: int, base_gfn: int, as_id: int = 0, *, internal: bool = False) -> None:
        """Move a slot to other frames; it may overlap where it was. O(log n)."""
        with self.slots_lock:
            old = self._existing(slot, as_id)
            self._whole(old._replace(base_gfn=base_gfn), internal=internal)

    def set_flags(self, slot: int, flags: int, as_id: int = 0, *, internal: bool = False) -> None:
        """Change whether a slot logs dirty pages; EINVAL for a read-only toggle. O(log n)."""
        with self.slots_lock:
            old = self._existing(slot, as_id)
            self._whole(old._replace(flags=flags), internal=internal)

    def replace(
        self, slot: int, base_gfn: int, npages: int, userspace_addr: int, flags: int = 0, as_id: int = 0
    ) -> None:
        """Put another slot in a slot's place in one swap: resize, re-host, read-only, what KVM has no call for."""
        with self.update(as_id) as update:
            new = Change(slot, base_gfn, npages, userspace_addr, flags, as_id)
            update.stage_all((Change(slot, as_id=as_id), new), internal=slot >= self.max_slots)
            update.publish()

    def apply(self, change: Change, *, internal: bool = False) -> ChangeKind:
        """Carry out one change as KVM_SET_USER_MEMORY_REGION does; returns its kind. O(log n) and grace periods."""
        with self.slots_lock:
            return self._whole(change, internal=internal)

    def update(self, as_id: int = 0) -> Update:
        """Begin an update in phases of one address space; waits for ``slots_lock`` and holds it until its end."""
        self._space(as_id)
        self.slots_lock.acquire()
        try:
            self.finish_interrupted()
            return Update(self, as_id)
        except BaseException:
            self.slots_lock.release()
            raise

    def update_both(self, first: int, last: int) -> list[Update]:
        """Begin updates of two address spaces under one hold of ``slots_lock``, which the last to end gives back."""
        if len({self._space(first), self._space(last)}) < 2:
            raise UsageError(f"as_id: {first} and {last} are not two address spaces")
        if len(self.desks) < 2:
            other = own(self.geometry.desk_words)
            self.desks = [self.desk, other]
        updates: list[Update] = []
        begun = self.update(first)
        try:
            other = next(desk for desk in self.desks if desk is not self.desk)
            updates += Update(self, first, self.desk, updates), Update(self, last, other, updates)
        except BaseException:
            begun.abort()
            raise
        return updates

    def turn_to(self, desk: Own) -> None:
        """Under ``slots_lock``: go on at another desk; what is free goes there."""
        hand_over(self.desk, desk)
        self.desk = desk

    def finish_interrupted(self) -> None:
        """Under ``slots_lock``: bring an update to its end that was left while it waited for readers (Ctrl-C)."""
        if not self.desk[PHASE]:
            return
        end_update(self)
        for desk in self.desks:
            if desk[PHASE]:
                self.turn_to(desk)
                end_update(self)

    def _existing(self, slot: int, as_id: int) -> Change:
        old = self.by_id(slot, as_id)
        if old is None:
            raise refusal(self, NO_SLOT, Change(slot, as_id=as_id), self.ids)
        return Change.of(old)

    def _change(self, change: Change, *, internal: bool = False, create: bool = False) -> ChangeKind:
        with self.slots_lock:
            return self._whole(change, internal=internal, create=create)

    def _whole(self, change: Change, *, internal: bool = False, create: bool = False) -> ChangeKind:
        """One whole change, under ``slots_lock``."""
        as_id = change[5]
        if as_id >= self.address_spaces:
            self._space(as_id)
        if self.desk[PHASE]:
            self.finish_interrupted()
        desk, srcu = self.desk, self.srcu
        self.ask(change, self.ids if internal else self.max_slots)
        kind = change_at_once(self.words, desk, srcu.words, srcu.readers, create)
        if kind < NOTHING:
            return KINDS[kind]
        if kind & _UNFINISHED:
            return self._finish(kind - _UNFINISHED)
        if kind >= FIRST_REASON:
            raise refusal(self, kind, change, self.ids if internal else self.max_slots)
        return ChangeKind.NOTHING

    def ask(self, change: Change, ids: int) -> None:
        """Write a change to the desk, under ``slots_lock``, for slots below ``ids``; MemslotError if it is no words."""
        try:
            _write_asked(self.desk, _ASKED_AT, *change, ids)
        except (struct.error, ValueError):
            raise refusal(self, 0, change, 0) from None

    def _finish(self, kind: int) -> ChangeKind:
        """Go on with a change that has to wait for readers; after Ctrl-C the next change may have to end it."""
        words, desk, srcu = self.words, self.desk, self.srcu
        try:
            if desk[PHASE] == MARKS_SWAPPED:
                srcu.synchronize()
                settle(words, desk)
                stage_asked(words, desk)
                swap_at_once(words, desk, srcu.words, srcu.readers)
            if desk[PHASE] == SWAPPED:
                srcu.synchronize()
                settle(words, desk)
            bring(words, desk, False)
        except BaseException:
            end_update(self, patient=False)
            raise
        return KINDS[kind]

    def check(self) -> None:
        """Raise InvariantError naming the first broken invariant of either set. O(n); waits for ``slots_lock``."""
        with self.slots_lock:
            check_memslots(self.geometry, self._cells, self.desk)
