"""Attributes of the VM, Linux 6.8 on: KVM_SET_MEMORY_ATTRIBUTES by guest frame; the file itself has one state for ever.

Whether the host may map the file is a flag of it (INIT_SHARED, 6.18). Which half of a slot serves a guest's access is
the VM's attribute at the frame: private memory from the file, shared memory from ``userspace_addr``, or from the file
too if the slot is gmem-only. The kernel stores an entry a page; here, a range. Source: ``kvm_vm_set_mem_attributes()``,
Linux 6.12, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from ..errors import GuestMemfdError, RangeNodesError
from ..ranges import RangeMap
from ..units import PAGE_SIZE
from .attributes import KVM_MEMORY_ATTRIBUTE_PRIVATE
from .states import GUEST_MEMFD_FLAG_INIT_SHARED, InodeOfStates, States

__all__ = ["VmAttributes", "VmMemoryAttributes"]


class VmAttributes(States):
    """The file's side: shared 0 with INIT_SHARED, else private 8, as a whole; it cannot be converted."""

    NAME: ClassVar[str] = "vm-attributes"
    HOST_BARS: ClassVar[int] = KVM_MEMORY_ATTRIBUTE_PRIVATE
    NAMES: ClassVar[dict[int, str]] = {0: "shared", KVM_MEMORY_ATTRIBUTE_PRIVATE: "private"}

    def initial(self, flags: int) -> int:
        """The whole file is the host's, too, or it is not."""
        return 0 if flags & GUEST_MEMFD_FLAG_INIT_SHARED else KVM_MEMORY_ATTRIBUTE_PRIVATE

    def convert(self, inode: InodeOfStates, first: int, last: int, *, private: bool) -> None:
        """ENOTTY: the VM has the attributes."""
        del inode, first, last, private
        raise GuestMemfdError(errno.ENOTTY, "guest_memfd: attributes are the VM's: KVM_SET_MEMORY_ATTRIBUTES")


class VmMemoryAttributes:
    """The attributes of one VM's frames. ``supported``: bits it may have, 0 without private memory.

    ``invalidate(start_gfn, end_gfn)`` is entered while they change, so that mappings go and come back afterwards.

    >>> attributes = VmMemoryAttributes()
    >>> attributes.set(0x100000, 0x40000000, 8)
    >>> attributes.get(0x100), attributes.get(0xff), len(attributes.ranges)
    (8, 0, 1)
    >>> attributes.set(0x100000, 0x800, 8)
    Traceback (most recent call last):
    guestmem.errors.GuestMemfdError: EINVAL: memory attributes: address 0x100000 and size 0x800 are not page aligned
    """

    def __init__(
        self,
        supported: int = KVM_MEMORY_ATTRIBUTE_PRIVATE,
        invalidate: Callable[[int, int], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.supported = supported
        self.ranges = RangeMap()
        self._invalidate = invalidate or (lambda _start, _end: nullcontext())

    def get(self, gfn: int) -> int:
        """The attributes of a frame; the kernel has no such call, and user space keeps its own copy."""
        return self.ranges.get(gfn)

    def set(self, address: int, size: int, attributes: int, flags: int = 0) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES, in bytes. In order: flags, bits, wrap, alignment (EINVAL); ENOMEM.

        Needs no slot, and looks at no file and no reference. Nothing is invalidated if nothing changes. O(log n +
        ranges replaced); the kernel's takes time in pages.
        """

        def refused(why: str) -> GuestMemfdError:
            return GuestMemfdError(errno.EINVAL, f"memory attributes: {why}")

        if flags:
            raise refused(f"flags {flags:#x} are not 0")
        if attributes & ~self.supported:
            raise refused(f"attributes {attributes:#x} are not of {self.supported:#x}")
        if size <= 0 or address < 0 or address + size >= 1 << 64:
            raise refused(f"address {address:#x} with size {size:#x} is empty, or wraps")
        if address % PAGE_SIZE or size % PAGE_SIZE:
            raise refused(f"address {address:#x} and size {size:#x} are not page aligned")
        start, end = address // PAGE_SIZE, (address + size) // PAGE_SIZE
        _, until, value = self.ranges.find(start)
        if value == attributes and until >= end:
            return
        try:
            self.ranges.preallocate()
        except RangeNodesError as error:
            raise GuestMemfdError(errno.ENOMEM, f"memory attributes: {error}") from None
        try:
            with self._invalidate(start, end):
                self.ranges.store(start, end, attributes, reserved=True)
        finally:
            self.ranges.release()
