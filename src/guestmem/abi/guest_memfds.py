"""guest_memfd as far as memslots concern it: files of a VM, and which of their ranges are bound to which slot.

Source: ``kvm_gmem_create()`` and ``kvm_gmem_bind()``, Linux 6.18, ``virt/kvm/guest_memfd.c``. What is in the files,
and who may see it, is another room's business (``gmem``), which also has the checks of sizes and ranges.
"""

from __future__ import annotations

import errno
import itertools

from ..errors import MemslotError
from ..gmem.checks import bind_refusal, create_refusal
from ..memslots.slot import SlotKey
from .checks import Host
from .versions import KernelVersion

__all__ = ["GuestMemfd", "create_guest_memfd"]

_numbers = itertools.count(1)


def create_guest_memfd(owner: object, size: int, flags: int, host: Host) -> GuestMemfd:
    """KVM_CREATE_GUEST_MEMFD: EINVAL for unknown flags, and for a size that is 0, negative or not of whole pages.

    ENOTTY on a kernel without CONFIG_KVM_GUEST_MEMFD.
    """
    if not host.guest_memfd:
        raise MemslotError(errno.ENOTTY, "guest_memfd: the kernel has none")
    if why := create_refusal(size, flags, host.gmem_flags):
        raise MemslotError(errno.EINVAL, f"guest_memfd: {why}")
    return GuestMemfd(owner, size, flags)


class GuestMemfd:
    """One file: its VM, its size in bytes, and the ranges that slots have bound."""

    def __init__(self, owner: object, size: int, flags: int = 0) -> None:
        self.owner, self.size, self.flags = owner, size, flags
        self.number = next(_numbers)
        """This file's alone: what ``Slot.guest_memfd`` says."""
        self.bound: dict[SlotKey, tuple[int, int]] = {}
        """Offset and size in bytes."""

    def check_bind(self, owner: object, name: int, offset: int, size: int, version: KernelVersion) -> None:
        """Step 19: MemslotError unless slot ``name`` of the VM ``owner`` may bind ``[offset, offset + size)``."""
        if self.owner is not owner:
            raise MemslotError(errno.EINVAL, f"slot {name}: guest_memfd belongs to another VM")
        if why := bind_refusal(self.size, offset, size):
            raise MemslotError(errno.EINVAL, f"slot {name}: guest_memfd_{why}")
        for (as_id, id_), (start, length) in self.bound.items():
            if offset < start + length and start < offset + size:
                raise MemslotError(
                    version.gmem_overlap_errno,
                    f"slot {name}: guest_memfd range {offset:#x} is bound to slot {as_id}:{id_} already",
                )
