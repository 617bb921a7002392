"""Dirty logs of the software engine: bitmaps that vCPUs' faults mark, and what taking one does to the stage-2 table.

A slot that logs has a bitmap; its address is in the slot's record, so a fault marks in the bitmap of the very slot that
it looked up. Whoever takes bits takes the right to write from these pages in one step under the table's lock, then
invalidates, and only then says which pages they were. Source: ``kvm_get_dirty_log_protect()`` and
``kvm_clear_dirty_log_protect()``, ``virt/kvm/kvm_main.c``; ``kvm_mmu_slot_apply_flags()``, ``arch/x86/kvm/x86.c``;
``kvm_arch_commit_memory_region()``, ``arch/arm64/kvm/mmu.c``, Linux 6.18.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ...atomics import load_relaxed
from ...compiled import U64, Words, compiled, const, u64
from ...dirty.bitmap import DirtyBitmap, bitmap_clear, bitmap_take
from ...entries import flat
from ...errors import InvariantError, MemslotError, UsageError
from ...memslots import KVM_MEM_LOG_DIRTY_PAGES, Change, ChangeKind, Slot, SlotKey
from ...memslots.no_memory import no_memory_for
from ...memslots.set import Memslots
from ...stage2 import layout
from ...stage2.free_list import cache_topup
from ...stage2.invalidate import invalidate_range
from ...stage2.layout import CACHE_CAPACITY, CACHE_COUNT, ENOMEM, LAST_LEVEL, LOCK_BASE, OK, PROGRESS, RESULT, VCPUS
from ...stage2.protect import write_protect_range
from ...stage2.recover import recover_range
from ...stage2.rwlock import write_lock, write_unlock
from ...stage2.split import split_range
from ...stage2.words import Table
from .region import attach, attach_now
from .stage2 import Stage2

__all__ = ["DISABLES", "ENABLES", "DirtyLogging", "DirtyLogs"]

ENABLES = ("demand", "split")
"""When logging is switched on, blocks are write-protected; they are split by the faults, or at once."""
DISABLES = ("lazy", "unmap", "eager", "bbm2")
"""When it is switched off: nothing, faults find out; the slot is unmapped; tables become blocks, by break-before-make,
or as FEAT_BBM level 2 allows."""

_ONE = const(1)
_BITS = const(64)
_PAGE_SHIFT = const(12)
_BBM_2 = int(layout.BBM_2)


@compiled
def _protect_marked(table: Table, bitmap: Words, half: U64, gfn: U64, count: U64) -> U64:
    """Write-protect the pages whose bits are set in ``count`` words of the second half, the first of them ``gfn``.

    Returns how many leaves lost the right. Runs of bits are one walk each. The lock is held for writing; invalidates
    nothing. O(words + entries).
    """
    desk = table.desk
    changed = u64(0)
    begun = u64(0)
    length = u64(0)
    page = u64(0)
    while page < count * _BITS:
        word = load_relaxed(bitmap, half + (page >> 6)) >> (page & u64(63))
        step = _ONE
        if word == 0:
            step = _BITS - (page & u64(63))
        elif word & _ONE != 0:
            if length == 0:
                begun = page
            length += _ONE
        if word & _ONE == 0 and length != 0:
            if write_protect_range(table, (gfn + begun) << 12, length << 12) == OK:
                changed += desk[RESULT]
            length = u64(0)
        page += step
    if length != 0 and write_protect_range(table, (gfn + begun) << 12, length << 12) == OK:
        changed += desk[RESULT]
    return changed


@compiled(nogil=True)
def take_and_protect(table: Table, bitmap: Words, half: U64, gfn: U64, flush: bool) -> U64:
    """KVM_GET_DIRTY_LOG without manual protection; what was taken is in the second half. Returns leaves protected.

    Bits are taken and pages protected under one hold of the lock, which a fault holds from its mark to its entry: so
    an entry that lets writes through has its bit still to be taken, or was protected. ``flush``: wait until no vCPU can
    write through an old translation; before that the pages must not be read. Outside the lock, as in KVM: who faults
    meanwhile marks again.
    """
    mmu = table.mmu
    lock = load_relaxed(mmu, LOCK_BASE)
    write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
    changed = u64(0)
    if bitmap_take(bitmap, half) != 0:
        changed = _protect_marked(table, bitmap, half, gfn, half)
    write_unlock(mmu, lock)
    if changed != 0 and flush:
        invalidate_range(mmu, gfn << 12, half << 18)
    return changed


@compiled(nogil=True)
def clear_and_protect(
    table: Table, bitmap: Words, half: U64, gfn: U64, first: U64, count: U64, limit: U64, flush: bool
) -> U64:
    """KVM_CLEAR_DIRTY_LOG of ``count`` words from ``first`` on, by the second half; returns leaves protected.

    As ``take_and_protect``. A block that one of the pages lies in is protected as a whole (INITIALLY_SET leaves blocks
    writable): its other pages keep their bits, and fault once more.
    """
    mmu = table.mmu
    lock = load_relaxed(mmu, LOCK_BASE)
    write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
    changed = u64(0)
    if bitmap_clear(bitmap, half, first, count, limit) != 0:
        changed = _protect_marked(table, bitmap, half, gfn + (first << 6), count)
    write_unlock(mmu, lock)
    if changed != 0 and flush:
        invalidate_range(mmu, (gfn + (first << 6)) << 12, count << 18)
    return changed


@compiled(nogil=True)
def split_in_chunks(table: Table, ipa: U64, size: U64, chunk: U64) -> U64:
    """Split all blocks of a range into pages, ``chunk`` of them at a time, the lock dropped in between; how many.

    A pool that is empty ends it: what is left is split by faults. Source: ``kvm_mmu_split_huge_pages()``, Linux
    ``arch/arm64/kvm/mmu.c``.
    """
    shape, pool, pages, mmu, desk = table
    lock = load_relaxed(mmu, LOCK_BASE)
    split = u64(0)
    end = ipa + size
    while True:
        cache_topup(shape, pool, pages, desk, desk[CACHE_CAPACITY])
        write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
        status = split_range(table, ipa, end - ipa, shape[LAST_LEVEL], chunk)
        write_unlock(mmu, lock)
        done = desk[RESULT]
        split += done
        if status == OK or (status == ENOMEM and done == 0 and desk[CACHE_COUNT] == 0):
            return split
        ipa = desk[PROGRESS]


@dataclass(frozen=True, slots=True)
class DirtyLogging:
    """How an engine logs: what it does when logging is switched on and off.

    ``chunk``: blocks that are split, or joined, under one hold of the lock. ``initially_set``: a new log has all pages,
    and switching logging on protects nothing: the first clear of each page does. ``flush``: whether a taken log waits
    until no vCPU writes through an old translation; False is broken, on purpose.
    """

    enable: str = "demand"
    disable: str = "lazy"
    chunk: int = 64
    initially_set: bool = False
    flush: bool = True

    def __post_init__(self) -> None:
        for name, value, allowed in (("enable", self.enable, ENABLES), ("disable", self.disable, DISABLES)):
            if value not in allowed:
                raise UsageError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
        if self.chunk < 1:
            raise UsageError(f"chunk: {self.chunk} blocks are not at least 1")


class DirtyLogs:
    """The dirty logs of an engine's slots, for one thread at a time: all methods hold, or are called under, slots_lock.

    ``bitmap`` is None for a slot that has none.
    """

    def __init__(self, memslots: Memslots, stage2: Stage2, how: DirtyLogging) -> None:
        self._memslots, self._stage2, self.how = memslots, stage2, how
        self.initially_set = how.initially_set
        self.enabled = True
        """False: slots that log get no bitmap (a VM with dirty rings)."""
        self._bitmaps: dict[SlotKey, DirtyBitmap] = {}
        self._retired: list[DirtyBitmap] = []
        """Of slots that are gone; a vCPU that looked before may still mark in them until the grace period is over."""
        self._before: list[tuple[SlotKey, DirtyBitmap | None]] = []
        """What ``attach`` replaced, in order, until it is certain that it stays."""

    # -- for updates -------------------------------------------------------------------------------------------------

    @property
    def has_any(self) -> bool:
        """Whether some slot logs. O(1)."""
        return bool(self._bitmaps)

    def concerns(self, change: Change) -> bool:
        """Whether a change is of a slot that logs before or after it. O(1)."""
        return bool(change.flags & KVM_MEM_LOG_DIRTY_PAGES or change.key in self._bitmaps)

    def attach(self, staged: list[tuple[Change, ChangeKind]]) -> None:
        """Before a set is published: every slot that was staged and logs gets its bitmap, new or the one it had.

        ``detach`` takes it back if the set is not published; all that can fail is here: BatchError (ENOMEM) names the
        slot of ``staged`` for whose bitmap there is no memory.

        The one it had, if it was moved or changed flags, alone: bits are relative to the slot. In a batch, where slots
        are made of others, each gets a new one; ``abi.take_over`` brings the bits, once nobody can mark in the old.
        """
        if not self._bitmaps and not any(change.flags & KVM_MEM_LOG_DIRTY_PAGES for change, _ in staged):
            return
        alone = len(staged) == 1
        for entry, (change, kind) in enumerate(staged):
            if kind is ChangeKind.NOTHING:
                continue
            try:
                self._attach_one(change, keeps=alone and kind in {ChangeKind.MOVE, ChangeKind.FLAGS_ONLY})
            except MemoryError:
                raise no_memory_for([each for each, _ in staged], entry, "its dirty bitmap") from None

    def _attach_one(self, change: Change, *, keeps: bool) -> None:
        key = change.key
        old = self._bitmaps.get(key)
        self._before.append((key, old))
        self._bitmaps.pop(key, None)
        if self.enabled and not change.deletes and change.flags & KVM_MEM_LOG_DIRTY_PAGES:
            bitmap = old if keeps else None
            if bitmap is None:
                bitmap = DirtyBitmap(change.npages, ones=self.initially_set)
            self._bitmaps[key] = bitmap
            attach(self._memslots.words, self._memslots.desk, change.slot, bitmap.address)
        if old is not None and old is not self._bitmaps.get(key):
            self._retired.append(old)

    def attached(self) -> None:
        """The set that ``attach`` was for is published."""
        self._before.clear()

    def detach(self) -> None:
        """The set that ``attach`` was for is not published: what it did is undone."""
        for key, old in reversed(self._before):
            if old is None:
                self._bitmaps.pop(key, None)
            else:
                self._bitmaps[key] = old
        self._before.clear()
        self._retired.clear()

    def bitmap_after(self, change: Change) -> DirtyBitmap | None:
        """The bitmap that a change by itself leaves its slot with: the one it had, a new one, or none."""
        if not (self.enabled and change.flags & KVM_MEM_LOG_DIRTY_PAGES and not change.deletes):
            return None
        old = self._bitmaps.get(change.key)
        return DirtyBitmap(change.npages, ones=self.initially_set) if old is None else old

    def carried_out(self, change: Change, bitmap: DirtyBitmap | None) -> None:
        """``bitmap`` is that of the change's slot from now on; no vCPU is left that looked before."""
        key = change.key
        if bitmap is not None:
            self._bitmaps[key] = bitmap
        else:
            self._bitmaps.pop(key, None)

    def attach_all(self) -> None:
        """Before vCPUs run: every slot that logs has its bitmap, whoever made it log."""
        for key, bitmap in self._bitmaps.items():
            attach_now(self._memslots.words, key.as_id, key.slot, bitmap.address)

    def settled(self) -> None:
        """No vCPU is left that looked before: bitmaps of slots that are gone may go."""
        self._retired.clear()

    def enable(self, as_id: int, start_gfn: int, end_gfn: int) -> int:
        """Logging is on, and the range write-protected: split its blocks if that is how; returns how many."""
        if self.how.enable != "split" or self.initially_set:
            return 0
        return self._split(as_id, start_gfn, end_gfn)

    def _split(self, as_id: int, start_gfn: int, end_gfn: int) -> int:
        table = self._stage2.tables[as_id]
        size = (end_gfn - start_gfn) << 12
        return int(split_in_chunks(table.at(0), start_gfn << 12, size, self.how.chunk))

    def disable(self, slot: Slot) -> int:
        """Logging is off, and no fault is left that thinks otherwise: as ``how.disable`` says; returns blocks made.

        For ``unmap``, leaves removed.
        """
        stage2, how = self._stage2, self.how.disable
        if how == "lazy":
            return 0
        if how == "unmap":
            return stage2.zap(slot.as_id, [(slot.base_gfn, slot.end_gfn)])
        table = stage2.tables[slot.as_id]
        attributes = stage2.read_attributes if slot.readonly else stage2.write_attributes
        flags = _BBM_2 if how == "bbm2" else 0
        start, size = slot.base_gfn << 12, slot.npages << 12
        return int(recover_range(table.at(0), start, size, slot.userspace_addr, attributes, stage2.block_level, flags))

    # -- the log -----------------------------------------------------------------------------------------------------

    def bitmap(self, slot: int, as_id: int = 0) -> DirtyBitmap | None:
        """The bitmap that vCPUs mark for a slot, or None. O(1)."""
        return self._bitmaps.get(SlotKey(as_id, slot))

    def _logged(self, slot: int, as_id: int) -> tuple[Slot, DirtyBitmap, Stage2]:
        found, bitmap = self._memslots.by_id(slot, as_id), self.bitmap(slot, as_id)
        if found is None or bitmap is None:
            raise MemslotError(errno.ENOENT, f"slot {slot}: it does not exist, or has no dirty bitmap")
        return found, bitmap, self._stage2

    def get(self, slot: int, as_id: int = 0) -> bytes:
        """KVM_GET_DIRTY_LOG: the bitmap, which is 0 afterwards; no vCPU writes to its pages unnoticed from here on.

        MemslotError: ENOENT without a log. O(words + pages).
        """
        found, bitmap, stage2 = self._logged(slot, as_id)
        table = stage2.tables[as_id]
        with self._memslots.slots_lock:
            flat(take_and_protect, alone=True)(
                *table.words, table.desks[0], bitmap.words, bitmap.half, found.base_gfn, self.how.flush
            )
            return bitmap.protected()

    def copy(self, slot: int, as_id: int = 0) -> bytes:
        """KVM_GET_DIRTY_LOG with manual protection: the bitmap as it is; nothing is protected. O(words)."""
        return self._logged(slot, as_id)[1].copy()

    def clear(self, slot: int, first_page: int, num_pages: int, bits: bytes, as_id: int = 0) -> int:
        """KVM_CLEAR_DIRTY_LOG: forget ``bits``, and protect those pages only; returns leaves protected.

        With INITIALLY_SET and ``split``, their blocks are split here. ``first_page`` is a multiple of 64.
        """
        found, bitmap, stage2 = self._logged(slot, as_id)
        table = stage2.tables[as_id]
        with self._memslots.slots_lock:
            count = bitmap.ask(first_page, num_pages, bits)
            changed = flat(clear_and_protect, alone=True)(
                *table.words,
                table.desks[0],
                bitmap.words,
                bitmap.half,
                found.base_gfn,
                first_page >> 6,
                count,
                bitmap.npages,
                self.how.flush,
            )
            if self.initially_set and self.how.enable == "split" and num_pages:
                start = found.base_gfn + first_page
                self._split(as_id, start, min(start + num_pages, found.end_gfn))
        return int(changed)

    def check(self) -> None:
        """Raise InvariantError if a page of a slot that logs can be written and has no bit. No vCPU runs. O(pages).

        Marks come before entries, and bits go with rights, so this holds at every moment at which the lock is free.
        """
        shift = self._stage2.format.geometry
        for key, bitmap in self._bitmaps.items():
            slot = self._memslots.by_id(key.slot, key.as_id)
            if slot is None:
                raise InvariantError(f"dirty log: slot {key.slot} is gone, its bitmap is not")
            bitmap.check()
            table = self._stage2.tables[key.as_id]
            shape = table.shape
            mask, granted = (int(shape[int(word)]) for word in (layout.WRITE_MASK, layout.WRITE_GRANTED))
            dirty = bitmap.array()
            page = 0
            while page < slot.npages:
                leaf = table.lookup((slot.base_gfn + page) << 12)
                step = 1
                if leaf is not None and leaf.descriptor & mask == granted:
                    size = 1 << (shift.shift(leaf.level) - 12)
                    step = size - (slot.base_gfn + page) % size
                    if not dirty[page : page + step].all():
                        raise InvariantError(f"dirty log: {slot!r}: page {page} can be written and has no bit")
                page += step
