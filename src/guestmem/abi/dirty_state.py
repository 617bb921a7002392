"""Dirty logs, dirty rings and the capabilities of a VM: the ioctls of ``KvmModel`` that are not about regions.

Source: ``kvm_get_dirty_log_protect()``, ``kvm_clear_dirty_log_protect()``, ``kvm_vm_ioctl_enable_cap_generic()``,
Linux 6.18, ``virt/kvm/kvm_main.c``; ``virt/kvm/dirty_ring.c``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from ..dirty.bitmap import DirtyBitmap
from ..dirty.ring import ENTRY_BYTES, MAX_ENTRIES, RESERVED_ENTRIES, DirtyRing, Run, ring_size
from ..errors import MemslotError
from ..slot_key import SlotKey
from .guest_memfds import create_guest_memfd
from .structures import (
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryCap,
)
from .trees import MAINLINE, capability_name

if TYPE_CHECKING:
    from .model import KvmModel, ModelSlot

__all__ = ["DirtyState", "MarkedLogs"]

_MANUAL_CAPS = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET
_RINGS = (MemoryCap.DIRTY_LOG_RING, MemoryCap.DIRTY_LOG_RING_ACQ_REL)
_FIRST_FILE = 1000
_PML_ENTRIES = 512
_USERFAULT = 245
"""KVM_CAP_USERFAULT, in a tree that has it; mainline's 245 is something else."""
_FILE_ATTRIBUTES = 250
"""KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES; the number is mainline's."""


class MarkedLogs(Protocol):
    """Dirty logs that running vCPUs mark, where there are such vCPUs: the software engine's ``DirtyLogs``."""

    initially_set: bool
    enabled: bool

    def bitmap(self, slot: int, as_id: int = 0) -> DirtyBitmap | None:
        """The bitmap of a slot that logs."""

    def get(self, slot: int, as_id: int = 0) -> bytes:
        """What KVM_GET_DIRTY_LOG does: take the log, and write-protect what it names."""

    def clear(self, slot: int, first_page: int, num_pages: int, bits: bytes, as_id: int = 0) -> int:
        """What KVM_CLEAR_DIRTY_LOG does: clear bits, and write-protect their pages."""


class DirtyState:
    """How a VM logs dirty pages, its vCPUs' rings, and which pages a vCPU can write without being noticed again."""

    def __init__(self, vm: KvmModel, logs: MarkedLogs | None = None) -> None:
        self._vm, self._logs = vm, logs
        self.manual = 0
        """KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_INITIALLY_SET."""
        self.ring_entries = 0
        self.rings: dict[int, DirtyRing | None] = {}
        """vCPUs by id, and their rings if the VM has rings."""
        self.writable: set[tuple[SlotKey, int]] = set()
        """With rings: pages (slot, page) that were written and not write-protected since."""
        self._mmio_zaps = 0
        """``KvmModel.mmio_zaps`` when the first of these was written."""
        self._next_file = _FIRST_FILE

    @property
    def _reserved(self) -> int:
        return RESERVED_ENTRIES + (_PML_ENTRIES if self._vm.host.pml else 0)

    @property
    def initially_set(self) -> bool:
        """Whether a new bitmap has all pages."""
        return self.manual == _MANUAL_CAPS

    def _name_of(self, cap: int) -> str:
        """A capability as a reader of this kernel's headers knows it."""
        name = capability_name(cap, self._vm.host.version.tree)
        return f"{cap} ({name})" if name else str(cap)

    # -- capabilities, vCPUs, files ------------------------------------------------------------------------------------

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION: the value of a memory capability; 0 for all others."""
        host = self._vm.host
        values = {
            MemoryCap.MMU_SHADOW_CACHE_CONTROL: 1,
            MemoryCap.DESTROY_MEMORY_REGION_WORKS: 1,
            MemoryCap.JOIN_MEMORY_REGIONS_WORKS: 1,
            MemoryCap.USER_MEMORY: 1,
            MemoryCap.NR_MEMSLOTS: host.user_slots,
            MemoryCap.SYNC_MMU: 1,
            MemoryCap.READONLY_MEM: int(host.readonly),
            MemoryCap.MULTI_ADDRESS_SPACE: host.address_spaces if host.address_spaces > 1 else 0,
            MemoryCap.MANUAL_DIRTY_LOG_PROTECT2: _MANUAL_CAPS,
            MemoryCap.DIRTY_LOG_RING: MAX_ENTRIES * ENTRY_BYTES,
            MemoryCap.DIRTY_LOG_RING_ACQ_REL: MAX_ENTRIES * ENTRY_BYTES,
            MemoryCap.USER_MEMORY2: 1,
            MemoryCap.MEMORY_FAULT_INFO: 1,
            MemoryCap.MEMORY_ATTRIBUTES: host.vm_attribute_bits,
            MemoryCap.GUEST_MEMFD: int(host.has_guest_memfd),
            MemoryCap.PRE_FAULT_MEMORY: int(host.tdp),
            MemoryCap.GUEST_MEMFD_FLAGS: host.gmem_flags if host.has_guest_memfd else 0,
        }
        if cap == _USERFAULT and host.version.userfault:
            return 1
        if cap == _FILE_ATTRIBUTES and host.version.tree == MAINLINE:
            return host.file_attribute_bits
        return values.get(cap, 0)  # type: ignore[call-overload, no-any-return] # an int finds its IntEnum

    def enable_cap(self, argument: bytes) -> int:
        """KVM_ENABLE_CAP of what concerns dirty logs; EINVAL for every other capability."""
        cap, flags, arg0, *_ = EnableCap.unpack(argument)
        if cap == MemoryCap.MANUAL_DIRTY_LOG_PROTECT2:
            allowed = (
                _MANUAL_CAPS if arg0 & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE else KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
            )
            if flags or arg0 & ~allowed:
                raise MemslotError(
                    errno.EINVAL, f"manual dirty log: flags {flags:#x}, {arg0:#x}; allowed are 0, 1 and 3"
                )
            self.manual = arg0
            if self._logs is not None:
                self._logs.initially_set = self.initially_set
            return 0
        if cap in _RINGS:
            entries = ring_size(arg0, reserved=self._reserved)
            if self.ring_entries or self.rings:
                raise MemslotError(errno.EINVAL, "dirty ring: it is enabled already, or vCPUs exist")
            self.ring_entries = entries
            if self._logs is not None:
                self._logs.enabled = False
            return 0
        raise MemslotError(errno.EINVAL, f"cap: {self._name_of(cap)} with flags {flags:#x} cannot be enabled here")

    def create_vcpu(self, vcpu: int) -> int:
        """KVM_CREATE_VCPU; a made-up file.

        EINVAL for an id from ``host.max_vcpu_ids`` on, then for any where there are ``host.max_vcpus``, then EEXIST for
        one that is taken. Source: ``kvm_vm_ioctl_create_vcpu()``.
        """
        if not 0 <= vcpu < self._vm.host.max_vcpu_ids:
            raise MemslotError(errno.EINVAL, f"vcpu: {vcpu} is not in 0..{self._vm.host.max_vcpu_ids - 1}")
        if len(self.rings) >= self._vm.host.max_vcpus:
            raise MemslotError(errno.EINVAL, f"vcpu: the VM has {len(self.rings)}, as many as there can be")
        if vcpu in self.rings:
            raise MemslotError(errno.EEXIST, f"vcpu: {vcpu} exists")
        self.rings[vcpu] = DirtyRing(self.ring_entries, reserved=self._reserved) if self.ring_entries else None
        return self._file(("vcpu", vcpu))

    def create_guest_memfd(self, argument: bytes) -> int:
        """KVM_CREATE_GUEST_MEMFD; returns a made-up file, which ``KvmModel.files`` knows."""
        size, flags = CreateGuestMemfd.unpack(argument)
        return self._file(create_guest_memfd(self._vm, size, flags, self._vm.host))

    def _file(self, what: object) -> int:
        while self._next_file in self._vm.files:
            self._next_file += 1
        self._vm.files[self._next_file] = what
        return self._next_file

    # -- bitmaps -------------------------------------------------------------------------------------------------------

    def bitmap_for(self, key: SlotKey, old: ModelSlot | None, npages: int) -> DirtyBitmap | None:
        """The bitmap of a slot that logs from now on: the one it had, else a new one; none if the VM has rings.

        Logging switched on write-protects the slot's pages, except with INITIALLY_SET, which leaves that to the first
        clear of each page. Rings have no such clear: pages that were writable before are in no ring then.
        """
        found = self.marked(key)
        if found is not None:
            return found
        if old is not None and old.bitmap is not None:
            return old.bitmap
        if self.ring_entries:
            if self.writable and old is not None and not old.slot.logs_dirty_pages and not self.initially_set:
                self.writable = {page for page in self.writable if page[0] != key}
            return None
        return DirtyBitmap(npages, ones=self.initially_set)

    def marked(self, key: SlotKey) -> DirtyBitmap | None:
        """The bitmap that vCPU threads mark for a slot, if there are such."""
        return None if self._logs is None else self._logs.bitmap(key.slot, key.as_id)

    def zapped(self) -> None:
        """A DELETE or MOVE threw all translations away: the next write to any page is noticed again."""
        if self.writable:
            self.writable.clear()

    def slot_zapped(self, key: SlotKey) -> None:
        """The translations of one slot went: the next write to a page of it is noticed again."""
        self.writable.difference_update([each for each in self.writable if each[0] == key])

    def swapped(self) -> None:
        """A CREATE or a change of flags: nothing is thrown away, unless MMIO's generations came round with it."""
        if self._mmio_zaps != self._vm.mmio_zaps:
            self.zapped()

    def _can_write(self, key: SlotKey, page: int) -> None:
        if not self.writable:
            self._mmio_zaps = self._vm.mmio_zaps
        self.writable.add((key, page))

    def _named(self, word: int) -> SlotKey:
        """The slot that a log ioctl names, or EINVAL."""
        key = SlotKey.of(word)
        if key.as_id >= self._vm.host.address_spaces or key.slot >= self._vm.host.user_slots:
            raise MemslotError(errno.EINVAL, f"slot: {word:#x} is no slot id with address space")
        return key

    def _with_bitmap(self, key: SlotKey) -> tuple[ModelSlot, DirtyBitmap]:
        held = self._vm.slots.get(key)
        if held is None or held.bitmap is None:
            raise MemslotError(errno.ENOENT, f"slot {key.slot}: it does not exist, or has no dirty bitmap")
        return held, held.bitmap

    def get_dirty_log(self, argument: bytes) -> int:
        """KVM_GET_DIRTY_LOG: the bitmap to user memory; without manual protection it is 0 afterwards.

        Where user memory cannot be written, EFAULT; the bits are lost all the same, as in the kernel.
        """
        log = DirtyLog.unpack(argument)
        if self.ring_entries:
            raise MemslotError(errno.ENXIO, "dirty log: the VM logs by rings")
        key = self._named(log.slot)
        _, bitmap = self._with_bitmap(key)
        if self.manual:
            taken = bitmap.copy()
        elif self._logs is not None and bitmap is self.marked(key):
            taken = self._logs.get(key.slot, key.as_id)
        else:
            taken = bitmap.take()
        self._vm.user.write(log.dirty_bitmap, taken)
        return 0

    def clear_dirty_log(self, argument: bytes) -> int:
        """KVM_CLEAR_DIRTY_LOG, with or without manual protection."""
        log = ClearDirtyLog.unpack(argument)
        if self.ring_entries:
            raise MemslotError(errno.ENXIO, "dirty log: the VM logs by rings")
        key = self._named(log.slot)
        name = f"slot {key.slot}"
        if log.first_page & 63:
            raise MemslotError(errno.EINVAL, f"{name}: first_page {log.first_page} is not a multiple of 64")
        held, bitmap = self._with_bitmap(key)
        npages = held.slot.npages
        if log.first_page > npages or log.num_pages > npages - log.first_page:
            raise MemslotError(
                errno.EINVAL, f"{name}: pages {log.first_page} + {log.num_pages} are past its {npages} pages"
            )
        if log.num_pages < npages - log.first_page and log.num_pages & 63:
            raise MemslotError(
                errno.EINVAL, f"{name}: num_pages {log.num_pages} is not a multiple of 64, nor up to the slot's end"
            )
        bits = self._vm.user.read(log.dirty_bitmap, (log.num_pages + 63) // 64 * 8)
        if log.num_pages and self._logs is not None and bitmap is self.marked(key):
            self._logs.clear(key.slot, log.first_page, log.num_pages, bits, key.as_id)
        elif log.num_pages:
            bitmap.clear(log.first_page, log.num_pages, bits)
        return 0

    # -- rings ---------------------------------------------------------------------------------------------------------

    def reset_dirty_rings(self, _argument: int) -> int:
        """KVM_RESET_DIRTY_RINGS: how many harvested entries were given back; EINVAL without rings."""
        if not self.ring_entries:
            raise MemslotError(errno.EINVAL, "dirty ring: the VM has none")
        count = 0
        for ring in self.rings.values():
            if ring is not None:
                entries, runs = ring.reset()
                count += entries
                for run in runs:
                    self._protect(run)
        return count

    def _protect(self, run: Run) -> None:
        """Write-protect a run's pages; one that names a slot or pages that are not there is dropped."""
        key = SlotKey(run.as_id, run.slot)
        held = self._vm.slots.get(key)
        last = run.offset + run.mask.bit_length() - 1
        if not self._vm.host.version.ring_reset_is_overflow_safe:
            last %= 1 << 64
        if held is None or last >= held.slot.npages:
            return
        for bit in range(run.mask.bit_length()):
            if run.mask >> bit & 1:
                self.writable.discard((key, (run.offset + bit) % (1 << 64)))

    # -- vCPUs ---------------------------------------------------------------------------------------------------------

    def mark(self, key: SlotKey, page: int, vcpu: int | None) -> bool:
        """A write to a page of a slot that logs: into the vCPU's ring, else into the bitmap; whether the ring is full.

        Without a vCPU (KVM's own writes) only a bitmap takes it. Source: ``mark_page_dirty_in_slot()``.
        """
        held = self._vm.slots.get(key)
        if held is None or page >= held.slot.npages:
            return False  # deleted a moment ago, and its log with it
        if not held.slot.logs_dirty_pages:
            if self.ring_entries:
                self._can_write(key, page)
            return False
        ring = self.rings.get(vcpu) if vcpu is not None else None
        if ring is None:
            if held.bitmap is not None:
                held.bitmap.mark(page)
            return False
        if (key, page) in self.writable:
            return False
        self._can_write(key, page)
        return ring.push(key.slot, page, key.as_id)
