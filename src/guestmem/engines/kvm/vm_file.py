"""The file of a VM of ``/dev/kvm``: its ioctls, memory regions by both calls, dirty logs and guest_memfd.

Errors of the kernel come as MemslotError with its errno. What runs in the VM is ``vm.KvmVm``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterable

from ...abi.structures import (
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryCap,
    MemoryIoctl,
    MemoryRegion,
)
from ...compiled import Words
from ...errors import CapabilityError, MemslotError, UsageError
from ...slot_key import SlotKey
from ...units import PAGE_SHIFT
from .address_map import map_insert, map_log, map_remove
from .answered_writes import AnsweredWrites
from .calls import Calls
from .capabilities import Cap
from .device import Device
from .ioctls import raw_ioctl
from .zones import Zone, Zones

__all__ = ["VmFile"]


class VmFile:
    """A VM's file and what is noted beside it; none is open yet."""

    device: Device
    map: Words
    """The VMM's own map of slots: see ``address_map``."""

    def __init__(self, *, rings: bool) -> None:
        self.file = -1
        self.calls = Calls()
        self.answered = AnsweredWrites(rings=rings)
        """Dirty pages that KVM does not know of; whoever calls ioctls on ``fd`` says so here."""
        self.zones = Zones()
        """Where KVM takes stores itself: what was registered by ``ioctl``."""
        self.file_was_taken = False
        self._guest_memfds: list[int] = []
        self._pages: dict[int, int] = {}
        """Of slots that were made by calls here, by ``SlotKey.word``."""

    def enable_cap(self, cap: Cap | MemoryCap | int, *args: int) -> None:
        """KVM_ENABLE_CAP on the VM; CapabilityError if the kernel refuses."""
        packed = EnableCap(int(cap), 0, *args).pack()
        try:
            with self.calls:
                fcntl.ioctl(self.file, MemoryIoctl.ENABLE_CAP, packed)
        except OSError as error:
            raise CapabilityError(f"engine kvm: KVM_ENABLE_CAP({int(cap)}, {args}): {error.strerror}") from None
        self.noted(MemoryIoctl.ENABLE_CAP, packed)

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0, as_id: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION, sizes in bytes; 0 deletes. MemslotError with the kernel's errno.

        The VMM's own map of slots is ``map_insert`` and ``map_remove``: see ``KvmEngine``.
        """
        region = MemoryRegion(SlotKey(as_id, slot).word, flags, guest_phys_addr, memory_size, userspace_addr)
        self._set_region(MemoryIoctl.SET_USER_MEMORY_REGION, region, region.pack())

    def set_user_memory_region2(
        self,
        slot: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        flags: int = 0,
        as_id: int = 0,
        *,
        guest_memfd: int = 0,
        guest_memfd_offset: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2: the same, and a guest_memfd behind the slot (flag KVM_MEM_GUEST_MEMFD)."""
        with self.calls:
            self.device.need(MemoryCap.USER_MEMORY2)
        region = MemoryRegion(
            SlotKey(as_id, slot).word,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            guest_memfd_offset,
            guest_memfd,
        )
        self._set_region(MemoryIoctl.SET_USER_MEMORY_REGION2, region, region.pack2())

    def _set_region(self, request: MemoryIoctl, region: MemoryRegion, argument: bytes) -> None:
        word, size = region.slot, region.memory_size
        before, after = self._pages.get(word, 0), size >> PAGE_SHIFT
        self._pages[word] = max(before, after)  # while nobody knows which it is
        try:
            self._memory(request, argument, f"slot {region.id}: {size:#x} at {region.guest_phys_addr:#x}")
        except MemslotError:
            self._pages[word] = before
            raise
        self._pages[word] = after

    @property
    def fd(self) -> int:
        """The VM's file, for ioctls of the caller's own.

        Whoever takes it may register zones in which KVM takes stores itself, and this VM cannot know of them: so
        exit_retry is refused from then on, until ``declare_zones`` says which there are.
        """
        self.file_was_taken = True
        return self.file

    def declare_zones(self, zones: Iterable[Zone] = ()) -> None:
        """Beside what ``zones`` has, these are all in which KVM takes stores itself, whoever had the VM's file."""
        for zone in zones:
            self.zones.add(zone)
        self.file_was_taken = False

    def ioctl(self, request: int, argument: bytes | int = 0) -> int:
        """Any ioctl on the VM's file but those that change slots, its structure as bytes; what it registers is noted.

        MemslotError with the kernel's errno. Returns what the kernel returns; what it wrote is dropped.
        """
        with self.calls:
            try:
                answer: int = fcntl.ioctl(
                    self.file, request, argument if isinstance(argument, int) else bytearray(argument)
                )
            except OSError as error:
                raise MemslotError(error.errno or 0, f"ioctl {request:#x}") from None
            self.noted(request, argument)
        return answer

    def raw_ioctl(self, request: int, argument: bytes | int) -> int:
        """The same, as ``ioctls.raw_ioctl``: minus errno where it fails."""
        with self.calls:
            answer = raw_ioctl(self.file, request, argument)
            if answer >= 0:
                self.noted(request, argument)  # pages that exit_retry wrote are dirty, too; zones
        return answer

    def noted(self, request: int, argument: bytes | int) -> None:
        """An ioctl on the VM has succeeded: note what it changes of logs and of zones."""
        self.answered.after(request, argument)
        self.zones.after(request, argument)

    def _memory(self, request: MemoryIoctl, argument: bytes, what: str) -> int:
        with self.calls:
            try:
                answer: int = fcntl.ioctl(self.file, request, bytearray(argument))
            except OSError as error:
                raise MemslotError(error.errno or 0, f"{what}: KVM_{request.name}") from None
            self.noted(request, argument)
        return answer

    def map_insert(self, gpa: int, size: int, host_address: int, flags: int) -> None:
        """Have MMIO in ``[gpa, gpa + size)`` answered from host memory. Only while exits are held, or none runs."""
        map_insert(self.map, gpa, gpa + size, host_address, flags)

    def map_remove(self, gpa: int) -> None:
        """The slot that begins at ``gpa`` answers nothing any more."""
        map_remove(self.map, gpa)

    def map_log(self, gpa: int, npages: int, key: SlotKey, *, logs: bool) -> None:
        """Whether the slot at ``gpa``, of this ``key``, logs. Only when ``map_insert`` may be."""
        if logs:
            self.answered.begin(key, npages)
        map_log(self.map, gpa, self.answered.address(key) if logs else 0)
        if not logs:
            self.answered.end(key)

    def get_dirty_log(self, slot: int, npages: int, as_id: int = 0) -> bytes:
        """KVM_GET_DIRTY_LOG: the bitmap, a bit a page, of a slot of ``npages``; in the plain mode it is cleared.

        MemslotError (EINVAL) for fewer pages than the slot has: the kernel would write past the bitmap's end. Who makes
        slots by ``fd``, or deletes some while their log is read, sees to that.
        """
        if npages < (most := self._pages.get(SlotKey(as_id, slot).word, 0)):
            raise MemslotError(errno.EINVAL, f"npages: {npages}; slot {slot} has {most}")
        bitmap = ctypes.create_string_buffer((npages + 63) // 64 * 8)
        argument = DirtyLog(SlotKey(as_id, slot).word, dirty_bitmap=ctypes.addressof(bitmap)).pack()
        self._memory(MemoryIoctl.GET_DIRTY_LOG, argument, f"slot {slot}")
        return bitmap.raw

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes, as_id: int = 0) -> None:
        """KVM_CLEAR_DIRTY_LOG: clear and re-protect the pages whose bits are set in ``bitmap``."""
        if len(bitmap) < (num_pages + 63) // 64 * 8:
            raise UsageError(f"bitmap: {len(bitmap)} bytes; {num_pages} pages need {(num_pages + 63) // 64 * 8}")
        held = ctypes.create_string_buffer(bitmap, len(bitmap) or 1)
        argument = ClearDirtyLog(SlotKey(as_id, slot).word, num_pages, first_page, ctypes.addressof(held)).pack()
        self._memory(MemoryIoctl.CLEAR_DIRTY_LOG, argument, f"slot {slot}")

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: re-protect what was harvested; returns the number of entries."""
        return self._memory(MemoryIoctl.RESET_DIRTY_RINGS, b"", "dirty rings")

    def create_guest_memfd(self, size: int, flags: int = 0) -> int:
        """KVM_CREATE_GUEST_MEMFD: a file of private memory for this VM; closed with the VM."""
        with self.calls:
            self.device.need(MemoryCap.GUEST_MEMFD)
            fd = self._memory(
                MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size, flags).pack(), f"guest_memfd of {size:#x}"
            )
            self._guest_memfds.append(fd)
        return fd

    def close_files(self) -> None:
        """Close the guest_memfds, the VM and ``/dev/kvm``, whoever is at them."""
        for fd in (*self._guest_memfds, self.file):
            with contextlib.suppress(OSError):
                if fd >= 0:
                    os.close(fd)
        self.file = -1
        self._guest_memfds = []
        self.device.close()
