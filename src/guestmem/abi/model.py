"""The kernel's side of a VM's memory, as a model: every memory ioctl, with its checks in order and their errnos.

Slots themselves, their two sets, generations and grace periods, are ``memslots``'; this adds what an ioctl does around
them: structures as bytes, accounting, dirty logs and rings, guest_memfds, capabilities. The steps are numbered as in
docs/abi.md. Source: ``virt/kvm/kvm_main.c``, Linux 6.18; answers compared with a running kernel by ``conform``.
"""

from __future__ import annotations

import errno
import operator
import os
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dirty.bitmap import DirtyBitmap
from ..errors import InvariantError, MemslotError
from ..memslots import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    Change,
    ChangeKind,
    Memslots,
    Slot,
    SlotKey,
    classify,
)
from ..memslots.checks import NO_FILE, OVERLAPS, refusal_of, refused
from ..units import U64_MAX
from .accounting import MmuPagesForm, PageAccounting
from .arguments import content_of, whole
from .checks import Host, check_region
from .dirty_state import DirtyState, MarkedLogs
from .guest_memfds import GuestMemfd
from .memory_attributes import MemoryAttributesState
from .structures import MemoryIoctl, MemoryRegion, region_of
from .take_over import DirtyPage, take_over
from .user_memory import ProcessMemory, UserMemory
from .userfault import KVM_MEM_USERFAULT, Userfaults, bitmap_of

if TYPE_CHECKING:
    from ..gmem.vm_attributes import VmMemoryAttributes

__all__ = ["KvmModel", "ModelSlot"]

MMIO_GENERATION_BITS = 19
"""Bits of a generation that an MMIO translation keeps."""
_REGION = struct.Struct("<IIQQQ")
_new = tuple.__new__
_DELETE, _MOVE, _NOTHING = ChangeKind.DELETE, ChangeKind.MOVE, ChangeKind.NOTHING
_process = object()
"""Another one in a child: what ``current->mm`` is to KVM, without a system call for each ioctl."""


def _in_a_child() -> None:
    global _process  # noqa: PLW0603  # there is one process, and this is what it is
    _process = object()


os.register_at_fork(after_in_child=_in_a_child)


def _word(name: str, value: object) -> int:
    """An ioctl's argument: an unsigned long, which -1 is the largest of."""
    return whole(name, value & U64_MAX if isinstance(value, int) and -1 << 63 <= value < 0 else value)


@dataclass(slots=True)
class ModelSlot:
    """What the kernel keeps of a slot beside its place: dirty bitmap and guest_memfd."""

    slot: Slot
    bitmap: DirtyBitmap | None = None
    guest_memfd: GuestMemfd | None = None


class KvmModel:
    """One VM as the kernel keeps it. ``ioctl`` answers as the kernel does; everything else is for looking.

    ``apply`` carries a judged change out on running vCPUs (``Memslots.apply`` unless given); ``logs`` are those that
    they mark; ``attributes`` makes the attributes that they ask. ``user`` is what pointers point to (this process
    unless given).

    >>> vm = KvmModel()
    >>> region = MemoryRegion(slot=3, memory_size=0x1000, userspace_addr=0x7000)
    >>> vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region.pack())
    0
    >>> vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region._replace(slot=4).pack())
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EEXIST: slot 4: [0x0, 0x1000) 4 KiB overlaps Slot 3 [0x0, 0x1000) 4 KiB -> 0x7000
    >>> list(vm.memslots), vm.accounting.pages
    ([Slot 3 [0x0, 0x1000) 4 KiB -> 0x7000], 1)
    """

    def __init__(
        self,
        host: Host | None = None,
        *,
        memslots: Memslots | None = None,
        apply: Callable[[Change], ChangeKind] | None = None,
        user: UserMemory | None = None,
        mmu_pages: MmuPagesForm = MmuPagesForm.RATIO,
        logs: MarkedLogs | None = None,
        attributes: Callable[[], VmMemoryAttributes] | None = None,
    ) -> None:
        self.host = Host() if host is None else host
        self.memslots = (
            Memslots(self.host.address_spaces, max_slots=self.host.user_slots) if memslots is None else memslots
        )
        self._limits = [
            [self.host.limits(v2=v2, internal=internal) for internal in (False, True)] for v2 in (False, True)
        ]
        self.accounting = PageAccounting(self.host.word_bits, mmu_pages)
        self.slots: dict[SlotKey, ModelSlot] = {}
        self.files: dict[int, object] = {}
        """What file descriptors of a caller are; a GuestMemfd, or anything else, which is none."""
        self.user: UserMemory = ProcessMemory() if user is None else user
        self.userfaults = Userfaults()
        self.dead = False
        """The VM is marked dead (``kvm_vm_dead``): every ioctl on it fails with EIO."""
        self.dirty = DirtyState(self, logs)
        self.attributes = MemoryAttributesState(self, attributes)
        self._apply = self.memslots.apply if apply is None else apply
        self._process = _process
        self.lock = threading.RLock()  # KVM's ``slots_lock``, as far as this model needs one
        self._handlers: dict[int, Callable[[bytes], int]] = {
            MemoryIoctl.SET_USER_MEMORY_REGION: self._region1,
            MemoryIoctl.SET_USER_MEMORY_REGION2: self._region2,
            MemoryIoctl.GET_DIRTY_LOG: self.dirty.get_dirty_log,
            MemoryIoctl.CLEAR_DIRTY_LOG: self.dirty.clear_dirty_log,
            MemoryIoctl.ENABLE_CAP: self.dirty.enable_cap,
            MemoryIoctl.CREATE_GUEST_MEMFD: self.dirty.create_guest_memfd,
        }
        if self.host.has_vm_attributes:
            self._handlers[MemoryIoctl.SET_MEMORY_ATTRIBUTES] = self.attributes.set_memory_attributes
        self._numbers: dict[int, Callable[[int], int]] = {
            MemoryIoctl.SET_NR_MMU_PAGES: self._set_nr_mmu_pages,
            MemoryIoctl.CREATE_VCPU: self.dirty.create_vcpu,
            MemoryIoctl.RESET_DIRTY_RINGS: self.dirty.reset_dirty_rings,
            MemoryIoctl.CHECK_EXTENSION: self.dirty.check_extension,
        }

    # -- the ioctl ---------------------------------------------------------------------------------------------------

    def ioctl(self, request: int, argument: bytes | bytearray | memoryview | int = 0) -> int:
        """Any memory ioctl: the structure as bytes, its address in user memory, or the number it takes.

        Returns what the kernel returns; MemslotError has its errno: EIO for a dead VM or another process (step 1),
        ENOTTY for a request that is none of this model's, EFAULT for an address that is not mapped (step 2).
        """
        if self.dead or self._process is not _process:
            raise MemslotError(errno.EIO, "vm: it is dead, or belongs to another process")
        handler = self._handlers.get(request)
        if handler is None:
            return self._by_number(request, argument)
        size = request >> 16 & 0x3FFF
        if type(argument) is not bytes:
            argument = self._pointed_to(request, argument, size)
        if len(argument) != size:
            raise MemslotError(errno.EFAULT, f"{MemoryIoctl(request).name}: {len(argument)} bytes, not {size}")
        with self.lock:
            return handler(argument)

    def _pointed_to(self, request: int, argument: object, size: int) -> bytes:
        name = MemoryIoctl(request).name
        try:
            address = operator.index(argument)  # type: ignore[arg-type] # that is the question
        except TypeError:
            return content_of(name, argument)
        return self.user.read(_word(name, address), size)

    def _by_number(self, request: int, argument: bytes | bytearray | memoryview | int) -> int:
        handler = self._numbers.get(request)
        if handler is None:
            if request == MemoryIoctl.SET_MEMORY_ATTRIBUTES:
                raise MemslotError(errno.ENOTTY, "memory attributes: the kernel has none of the VM")
            raise MemslotError(errno.ENOTTY, f"ioctl: {whole('request', request):#x} is no memory ioctl")
        number = _word(MemoryIoctl(request).name, argument)
        with self.lock:
            return handler(number)

    def _region1(self, argument: bytes) -> int:
        word, flags, gpa, size, hva = _REGION.unpack(argument)
        kind = self._set_region(word, flags, gpa, size, hva, 0, 0, False, False)
        return self._without_userfault(SlotKey.of(word), kind) if self.userfaults else 0

    def _region2(self, argument: bytes) -> int:
        region = MemoryRegion.unpack(argument)
        if region.flags & KVM_MEM_USERFAULT and self.host.version.userfault:
            return self._with_userfault(region, bitmap_of(region, argument, self.host))
        kind = self._set_region(*region, True, False)
        return self._without_userfault(region.key, kind) if self.userfaults else 0

    def _without_userfault(self, key: SlotKey, kind: ChangeKind) -> int:
        self.userfaults.drop(key)
        if kind in {_DELETE, _MOVE}:
            self.userfaults.zapped()
        return 0

    def _with_userfault(self, region: MemoryRegion, bitmap: int) -> int:
        """The sets do not know the flag, so switching it alone makes no swap here."""
        key = region.key
        kind = self._set_region(*region._replace(flags=region.flags & ~KVM_MEM_USERFAULT), True, False)
        if kind is _DELETE:
            return self._without_userfault(key, kind)
        if kind is _MOVE:
            self.userfaults.zapped()
        if key not in self.userfaults:
            self.dirty.slot_zapped(key)
        if kind is not _NOTHING or key not in self.userfaults:
            self.userfaults.put(key, bitmap)
        return 0

    def _set_nr_mmu_pages(self, count: int) -> int:
        self.accounting.set_mmu_pages(count)
        return 0

    # -- regions -----------------------------------------------------------------------------------------------------

    def set_internal_region(self, region: MemoryRegion) -> ChangeKind:
        """One of KVM's own slots (TSS, APIC access page, identity map): ids from ``host.user_slots`` on."""
        if region.id < self.host.user_slots:
            raise MemslotError(
                errno.EINVAL, f"slot: {region.id} is user space's; KVM's are from {self.host.user_slots}"
            )
        return self.set_region(region, v2=True, internal=True)

    def set_region(self, region: MemoryRegion, *, v2: bool, internal: bool = False) -> ChangeKind:
        """Steps 3 to 22 of either region ioctl; returns what it came to. O(log n) and grace periods."""
        with self.lock:
            kind = self._set_region(*region, v2, internal)
            self._without_userfault(region.key, kind)
            return kind

    def _set_region(
        self, word: int, flags: int, gpa: int, size: int, hva: int, offset: int, file: int, v2: bool, internal: bool
    ) -> ChangeKind:
        as_id, slot = key = _new(SlotKey, (word >> 16, word & 0xFFFF))  # SlotKey.of, in half the time
        limits = self._limits[v2][internal]
        if refused(slot, as_id, flags, gpa, size, hva, offset, limits):
            check_region(limits, MemoryRegion(word, flags, gpa, size, hva, offset, file))
        old = self.slots.get(key)
        base_gfn, npages = gpa >> 12, size >> 12
        change = _new(Change, (slot, base_gfn, npages, hva, flags, as_id, 0, 0, 0))
        kind = classify(change, None if old is None else old.slot)
        if kind is _DELETE and old is not None:
            self._delete(key, change, old, internal=internal)
            return kind
        if kind is _NOTHING:
            return kind
        if old is None and npages > self.accounting.largest - self.accounting.pages:
            raise self._wraps(change)
        private = flags & KVM_MEM_GUEST_MEMFD
        bound = None
        if private or base_gfn + npages - 1 > self.host.max_gfn:
            bound = self._look_further(change, kind, offset, file)
            if bound is not None:
                change = change._replace(guest_memfd=bound.number, guest_memfd_offset=offset)
        # Steps 17 and 18, and the swaps.
        if internal:
            self.memslots.apply(change, internal=True)
        else:
            self._apply(change)
        # Source: kvm_commit_memory_region().
        number = 0 if bound is None else bound.number
        held = _new(Slot, (as_id, slot, base_gfn, npages, hva, flags, number, 0 if bound is None else offset, 0))
        new = ModelSlot(held, None, bound)
        if old is None:
            self.accounting.create(npages)
            if bound is not None:
                bound.bound[key] = (offset, size)
        elif kind is _MOVE:
            self.dirty.zapped()
        if self.dirty.writable:
            self.dirty.swapped()
        if flags & KVM_MEM_LOG_DIRTY_PAGES:
            new.bitmap = self.dirty.bitmap_for(key, old, npages)
        self.slots[key] = new
        return kind

    def _delete(self, key: SlotKey, change: Change, old: ModelSlot, *, internal: bool) -> None:
        npages = old.slot.npages
        if self.accounting.pages < npages:
            raise MemslotError(
                errno.EIO, f"slot {change.slot}: the total of {self.accounting.pages:#x} pages would underflow"
            )
        if internal:
            self.memslots.apply(change, internal=True)
        else:
            self._apply(change)
        if self.dirty.writable:
            self.dirty.zapped()
        del self.slots[key]
        self.accounting.delete(npages)
        if old.guest_memfd is not None:
            del old.guest_memfd.bound[key]

    def _wraps(self, change: Change) -> MemslotError:
        return MemslotError(
            errno.EINVAL,
            f"slot {change.slot}: npages {change.npages:#x} and the {self.accounting.pages:#x} of all slots "
            f"wrap a word of {self.accounting.word_bits} bits",
        )

    def _look_further(self, change: Change, kind: ChangeKind, offset: int, fd: int) -> GuestMemfd | None:
        """Where step 19 or 21 may refuse: overlap (step 17) comes before them, a way back (22) after. The file."""
        late = self._late_refusal(change, offset, fd)
        if late is None:
            file = self.files.get(fd) if change.flags & KVM_MEM_GUEST_MEMFD else None
            return file if isinstance(file, GuestMemfd) else None
        for other in self.memslots.overlapping(change.base_gfn, change.base_gfn + change.npages, change.as_id):
            if other.id != change.slot:
                raise refusal_of(OVERLAPS, change, other)
        if kind is ChangeKind.MOVE:
            self._invalidate_and_revert(change)
        raise late

    def _late_refusal(self, change: Change, offset: int, fd: int) -> MemslotError | None:
        """Steps 19 and 21: why they refuse, or None."""
        name = change.slot
        if change.flags & KVM_MEM_GUEST_MEMFD:
            file = self.files.get(fd)
            if file is None:
                return refusal_of(NO_FILE, change._replace(guest_memfd=fd))
            if not isinstance(file, GuestMemfd):
                return MemslotError(errno.EINVAL, f"slot {name}: file {fd} is no guest_memfd")
            try:
                file.check_bind(self, name, offset, change.memory_size, self.host.version)
            except MemslotError as error:
                return error
        if change.base_gfn + change.npages - 1 > self.host.max_gfn:
            return MemslotError(
                errno.EINVAL, f"slot {name}: its last frame is past {self.host.max_gfn:#x}, the last of this host"
            )
        return None

    def _invalidate_and_revert(self, change: Change) -> None:
        """Step 22: a MOVE refused at step 21 has invalidated and zapped its slot already, and swaps it back."""
        with self.memslots.update(change.as_id) as update:
            update.invalidate(change.slot)
            update.publish()
            update.synchronize()
        self.dirty.zapped()

    # -- looking -----------------------------------------------------------------------------------------------------

    def slot(self, id_: int, as_id: int = 0) -> ModelSlot | None:
        """What the kernel keeps of a slot, or None. O(1)."""
        return self.slots.get(SlotKey(as_id, id_))

    @property
    def mmio_zaps(self) -> int:
        """How often all MMIO translations were zapped since the 19 bits that they keep of a generation came round to 0.

        The bits of the address space are not looked at. Source: ``kvm_mmu_invalidate_mmio_sptes()``.
        """
        spaces = range(self.host.address_spaces)
        return sum((self.memslots.generation(as_id) % (1 << 63)) >> MMIO_GENERATION_BITS for as_id in spaces)

    def check_change(self, change: Change) -> None:
        """Steps 3 to 13 for a change that a design will carry out; what concerns slots is the design's to find."""
        check_region(self._limits[bool(change.flags & KVM_MEM_GUEST_MEMFD)][False], region_of(change))
        if change.npages and change.base_gfn + change.npages - 1 > self.host.max_gfn:
            raise MemslotError(errno.EINVAL, f"slot {change.slot}: it ends past frame {self.host.max_gfn:#x}")

    def allows(self, slot: Slot) -> bool:
        """Whether steps 3 to 13 and this host's last frame let a change make ``slot``, without guest_memfd. O(1)."""
        as_id, name, base_gfn, npages, hva, flags, *_ = slot
        limits = self._limits[False][False]
        return (
            not refused(name, as_id, flags, base_gfn << 12, npages << 12, hva, 0, limits)
            and base_gfn + npages - 1 <= self.host.max_gfn
        )

    def changed_by_a_design(self, keys: Iterable[SlotKey], ended: list[DirtyPage] | None = None) -> list[DirtyPage]:
        """A design has changed slots ``keys`` by ways of its own: take over what is there now.

        A page keeps its bit as long as frame and host page stay a pair and it is logged; dirty pages for which that
        ended are returned, and added to ``ended`` if that is given, before anything can fail: it can be called again.
        O(pages of these slots).
        """
        found = [] if ended is None else ended
        with self.lock:
            changed = sorted(set(keys))
            for key in changed:
                self.userfaults.drop(key)
            self.userfaults.zapped()
            take_over(self, changed, found)
        return found

    def check(self) -> None:
        """Raise InvariantError unless slots, sets, accounting and bitmaps agree. O(n)."""
        self.memslots.check()
        there = {slot.key: slot for slot in self.memslots}
        if there.keys() != self.slots.keys():
            raise InvariantError(f"model: the sets have slots {sorted(there)}, the ABI {sorted(self.slots)}")
        for key, held in self.slots.items():
            if there[key] != held.slot:
                raise InvariantError(f"model: {held.slot!r} is {there[key]!r} in the sets")
            file = held.guest_memfd
            if held.slot.guest_memfd != (0 if file is None else file.number):
                raise InvariantError(f"model: {held.slot!r} has {file and file.number} as its guest_memfd")
            if file is not None and file.bound.get(key) != (held.slot.guest_memfd_offset, held.slot.npages << 12):
                raise InvariantError(f"model: {held.slot!r} is bound as {file.bound.get(key)}")
            if held.bitmap is not None:
                held.bitmap.check()
                if held.bitmap.npages != held.slot.npages or not held.slot.logs_dirty_pages:
                    raise InvariantError(f"model: {held.slot!r} has a bitmap of {held.bitmap.npages} pages")
        self.accounting.check(sum(slot.npages for slot in there.values()) & U64_MAX)
