"""Dirty bits after a design changed several slots at once: they belong to pairs of frame and host page, not to slots.

A pair that is logged before and after keeps its bit, whatever slot it is in now. A dirty pair that ends, because its
frame, its host page or its logging went, is handed back, so that it can still be copied. Bits are read here after the
update's grace period, so whoever marked in an old log has done it, and everybody marks in the new ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..dirty.bitmap import DirtyBitmap
from ..units import PAGE_SHIFT
from .guest_memfds import GuestMemfd

if TYPE_CHECKING:
    from ..memslots.slot import SlotKey
    from .model import KvmModel

__all__ = ["DirtyPage", "take_over"]


class DirtyPage(NamedTuple):
    """A page that was dirty when its slot, frame or log went: it can still be copied from ``userspace_addr``."""

    slot: int
    gfn: int
    userspace_addr: int
    as_id: int = 0


def take_over(vm: KvmModel, keys: list[SlotKey], ended: list[DirtyPage]) -> None:
    """Bring accounting and bitmaps of slots ``keys`` to what the sets have; ``ended`` gets dirty pairs that ended.

    Where memory fails in the middle, all is as it was before, and tried once more: the slots have changed, and cannot
    be changed back. A second MemoryError is the caller's, and may be tried again.
    """
    for last in (False, True):
        before = None
        try:
            before = _Before(vm, keys)
            _take_over(vm, keys, ended)
            return  # noqa: TRY300 - nothing of it can fail any more
        except MemoryError:
            if before is not None:
                before.restore()
            if last:
                raise


class _Before:
    """What ``take_over`` changes, as it was: bitmaps are only added to, which may be done again."""

    def __init__(self, vm: KvmModel, keys: list[SlotKey]) -> None:
        self._vm = vm
        self._slots = [(key, vm.slots.get(key)) for key in keys]
        files = {id(file): file for file in vm.files.values() if isinstance(file, GuestMemfd)}
        for _, held in self._slots:
            if held is not None and held.guest_memfd is not None:
                files[id(held.guest_memfd)] = held.guest_memfd
        self._bound = [(file, dict(file.bound)) for file in files.values()]
        self._pages = vm.accounting.pages, vm.accounting.mmu_pages

    def restore(self) -> None:
        """As it was."""
        vm = self._vm
        for key, held in self._slots:
            if held is None:
                vm.slots.pop(key, None)
            else:
                vm.slots[key] = held
        for file, bound in self._bound:
            file.bound = bound
        vm.accounting.pages, vm.accounting.mmu_pages = self._pages


def _take_over(vm: KvmModel, keys: list[SlotKey], into: list[DirtyPage]) -> None:
    import numpy as np

    from .model import ModelSlot

    _count(vm, keys)
    files = _unbound(vm, keys)
    old: list[tuple[SlotKey, Any, Any, Any, DirtyBitmap]] = []  # by slot that logged: key, frames, host pages, bits
    for key in keys:
        held = vm.slots.pop(key, None)
        if held is None:
            continue
        if held.bitmap is not None:
            frames, hosts = _pairs(held.slot)
            old.append((key, frames, hosts, held.bitmap.array(), held.bitmap))
    kept: list[tuple[SlotKey, Any]] = []
    for key in keys:
        slot = vm.memslots.by_id(key.slot, key.as_id)
        if slot is None:
            continue
        made = vm.slots[key] = ModelSlot(slot, guest_memfd=files.get(slot.guest_memfd))
        if made.guest_memfd is not None:
            made.guest_memfd.bound[key] = slot.guest_memfd_offset, slot.npages << PAGE_SHIFT
        if not slot.logs_dirty_pages or vm.dirty.ring_entries:
            continue
        made.bitmap = vm.dirty.marked(key) or DirtyBitmap(slot.npages)
        same_log = [frames for was, frames, _, _, bitmap in old if was == key and bitmap is made.bitmap]
        if same_log:  # moved, or its flags changed, alone: the log stayed with the slot, as in KVM
            kept.append((key, same_log[0]))
            continue
        _, hosts = _pairs(slot)
        bits = np.full(slot.npages, vm.dirty.initially_set)
        for was, frames, were, dirty, _ in old:
            if was.as_id != slot.as_id:
                continue
            inside = (frames >= slot.base_gfn) & (frames < slot.end_gfn)
            at = frames[inside] - np.uint64(slot.base_gfn)
            same = hosts[at] == were[inside]
            bits[at[same]] = dirty[inside][same]
            kept.append((was, frames[inside][same]))
        made.bitmap.merge(np.packbits(bits, bitorder="little").tobytes())  # vCPUs mark already
    vm.dirty.zapped()
    ended = []
    for key, frames, hosts, dirty, _ in old:
        gone = dirty.copy()
        for was, lived in kept:
            if was == key and len(lived):
                gone[lived - frames[0]] = False
        ended += [
            DirtyPage(key.slot, int(gfn), int(host), key.as_id)
            for gfn, host in zip(frames[gone], hosts[gone], strict=True)
        ]
    into += ended


def _unbound(vm: KvmModel, keys: list[SlotKey]) -> dict[int, GuestMemfd]:
    """Files by number, those of slots ``keys`` among them, which have bound nothing any more."""
    files = {file.number: file for file in vm.files.values() if isinstance(file, GuestMemfd)}
    for key in keys:
        held = vm.slots.get(key)
        if held is not None and held.guest_memfd is not None:
            files[held.guest_memfd.number] = held.guest_memfd
            held.guest_memfd.bound.pop(key, None)
    return files


def _count(vm: KvmModel, keys: list[SlotKey]) -> None:
    """The total of pages, and with it the MMU's, where slots came and went; a move alone touches neither."""
    went = came = 0
    for key in keys:
        held, slot = vm.slots.get(key), vm.memslots.by_id(key.slot, key.as_id)
        before, after = 0 if held is None else held.slot.npages, 0 if slot is None else slot.npages
        if before != after:
            went += before
            came += after
    if went or came:
        vm.accounting.change(went, came)


def _pairs(slot: Any) -> tuple[Any, Any]:
    """Frames and host pages of a slot, as arrays."""
    import numpy as np

    pages = np.arange(slot.npages, dtype=np.uint64)
    return pages + np.uint64(slot.base_gfn), (pages << np.uint64(12)) + np.uint64(slot.userspace_addr)
