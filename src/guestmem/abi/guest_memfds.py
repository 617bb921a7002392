"""guest_memfd as far as memslots concern it: files of a VM, and which of their ranges are bound to which slot.

Source: ``kvm_gmem_create()`` and ``kvm_gmem_bind()``, Linux 6.18, ``virt/kvm/guest_memfd.c``. What is in the files,
and who may see it, is another room's business (``gmem``), which also has the checks of sizes and ranges.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import GuestMemfdError, MemslotError, RangeNodesError
from ..gmem.checks import bind_refusal, create_refusal
from ..memslots.slot import SlotKey
from ..units import PAGE_SIZE
from .checks import Host
from .structures import GUEST_MEMFD_FLAG_INIT_SHARED
from .versions import KernelVersion

if TYPE_CHECKING:
    from ..ranges import RangeMap

__all__ = ["FileContent", "GuestMemfd", "create_guest_memfd"]

_numbers = itertools.count(1)
_PRIVATE = 8


def create_guest_memfd(owner: object, size: int, flags: int, host: Host) -> GuestMemfd:
    """KVM_CREATE_GUEST_MEMFD: EINVAL for unknown flags, and for a size that is 0, negative or not of whole pages.

    ENOTTY on a kernel without CONFIG_KVM_GUEST_MEMFD.
    """
    if not host.guest_memfd:
        raise MemslotError(errno.ENOTTY, "guest_memfd: the kernel has none")
    if why := create_refusal(size, flags, host.gmem_flags):
        raise MemslotError(errno.EINVAL, f"guest_memfd: {why}")
    return GuestMemfd(owner, size, flags)


class FileContent(Protocol):
    """What is in a file, where somebody has made that: ``gmem.GuestMemfd``."""

    def set_memory_attributes2(
        self, offset: int, size: int, attributes: int, flags: int = 0, reserved: Sequence[int] = ()
    ) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2."""

    def convert(self, offset: int, size: int, *, private: bool) -> None:
        """Let a range be private, or shared."""


class GuestMemfd:
    """One file: its VM, its size in bytes, and the ranges that slots have bound."""

    def __init__(self, owner: object, size: int, flags: int = 0) -> None:
        self.owner, self.size, self.flags = owner, size, flags
        self.number = next(_numbers)
        """This file's alone: what ``Slot.guest_memfd`` says."""
        self.bound: dict[SlotKey, tuple[int, int]] = {}
        """Offset and size in bytes."""
        self.content: FileContent | None = None
        self._states: RangeMap | None = None

    def _made_states(self) -> RangeMap:
        if self._states is None:
            from ..ranges import RangeMap

            self._states = RangeMap()
            if not self.flags & GUEST_MEMFD_FLAG_INIT_SHARED:
                self._states.store(0, self.size // PAGE_SIZE, _PRIVATE)
        return self._states

    def state(self, page: int) -> int:
        """The attributes of a page, of a file without content. Without INIT_SHARED all are private (8) at first."""
        return self._made_states().get(page)

    def store_state(self, first: int, last: int, value: int) -> None:
        """Pages [first, last] of a file without content have ``value`` from now on; GuestMemfdError (ENOMEM)."""
        try:
            self._made_states().store(first, last + 1, value)
        except RangeNodesError as error:
            raise GuestMemfdError(errno.ENOMEM, f"guest_memfd: {error}", error_offset=first * PAGE_SIZE) from None

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
