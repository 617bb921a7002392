"""KVM Userfault in the ABI: KVM_MEM_USERFAULT of a slot, its bitmap, and the exit of an access.

Source: "KVM: Introduce KVM Userfault" v3, linux-kvm, June 2025: not merged; Amazon's tree has it, where capability 245
is USERFAULT. The bitmap's address is the word at offset 48 of ``struct kvm_userspace_memory_region2``; bit n is page n.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MemslotError
from ..slot_key import SlotKey
from ..units import PAGE_SIZE
from .structures import MemoryRegion
from .versions import LINUX_6_18, KernelVersion, with_userfault

if TYPE_CHECKING:
    from .checks import Host
    from .model import KvmModel

__all__ = [
    "CAP_USERFAULT",
    "KVM_MEM_USERFAULT",
    "USERFAULT_V3",
    "MemoryFaultExit",
    "Userfaults",
    "pack_userfault",
    "userfault_access",
    "userfault_exit",
]

KVM_MEM_USERFAULT = 1 << 3
KVM_MEMORY_EXIT_FLAG_USERFAULT = 1 << 4
CAP_USERFAULT = 245
_OFFSET = 48
_WORD = struct.Struct("<Q")
USERFAULT_V3: KernelVersion = with_userfault(LINUX_6_18)
"""6.18 with that series, as a tree that carries it; what else such a tree changes is not said."""


class Userfaults:
    """Slots with KVM_MEM_USERFAULT: the address of the bitmap of each, and the pages that vCPUs have mapped since.

    A bit that is set has no effect on a page that is mapped, until the flag comes on anew; nor has a slot of another
    flag. A DELETE or MOVE of any slot throws all translations away.
    """

    __slots__ = ("_bitmaps", "_mapped")

    def __init__(self) -> None:
        self._bitmaps: dict[SlotKey, int] = {}
        self._mapped: dict[SlotKey, set[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._bitmaps)

    def __contains__(self, key: SlotKey) -> bool:
        return key in self._bitmaps

    def get(self, key: SlotKey) -> int | None:
        """The address of a slot's bitmap."""
        return self._bitmaps.get(key)

    def put(self, key: SlotKey, bitmap: int) -> None:
        """The flag is on."""
        self._bitmaps[key] = bitmap
        self._mapped.setdefault(key, set())

    def drop(self, key: SlotKey) -> None:
        """The flag is off, or the slot is gone."""
        self._bitmaps.pop(key, None)
        self._mapped.pop(key, None)

    def zapped(self) -> None:
        """All translations went."""
        for pages in self._mapped.values():
            pages.clear()

    def mapped(self, key: SlotKey) -> set[int]:
        """The pages of a slot that are mapped."""
        return self._mapped[key]


class MemoryFaultExit(NamedTuple):
    """What KVM_RUN leaves with KVM_EXIT_MEMORY_FAULT; it is -1 with EFAULT then."""

    flags: int
    gpa: int
    size: int


def pack_userfault(region: MemoryRegion, bitmap: int) -> bytes:
    """A region of the second form, with the address of its bitmap."""
    packed = bytearray(region.pack2())
    _WORD.pack_into(packed, _OFFSET, bitmap)
    return bytes(packed)


def bitmap_of(region: MemoryRegion, argument: bytes, host: Host) -> int:
    """The address of the bitmap that a region brings along; EINVAL unless it is one of user space, for all its words.

    It need not be mapped.
    """
    address = int(_WORD.unpack_from(argument, _OFFSET)[0])
    size = -(-(region.memory_size // PAGE_SIZE) // 64) * 8
    if address + size > host.task_size_max:
        raise MemslotError(
            errno.EINVAL,
            f"slot {region.id}: userfault_bitmap {address:#x} with {size:#x} bytes passes {host.task_size_max:#x}",
        )
    return address


def userfault_exit(vm: KvmModel, gpa: int, as_id: int = 0) -> MemoryFaultExit | None:
    """What an access of a vCPU to a page that is not mapped yet comes to: the exit, or None where it goes on. O(log n).

    KVM only reads the bitmap: MemslotError (EFAULT, without an annotated exit) if its word is not mapped.
    """
    gfn = gpa // PAGE_SIZE
    slot = next(iter(vm.memslots.overlapping(gfn, gfn + 1, as_id)), None)
    bitmap = None if slot is None else vm.userfaults.get(slot.key)
    if slot is None or bitmap is None:
        return None
    page = gfn - slot.base_gfn
    if page in vm.userfaults.mapped(slot.key):
        return None
    word = int(_WORD.unpack(vm.user.read(bitmap + page // 64 * 8, 8))[0])
    if not word >> page % 64 & 1:
        return None
    return MemoryFaultExit(KVM_MEMORY_EXIT_FLAG_USERFAULT, gfn * PAGE_SIZE, PAGE_SIZE)


def userfault_access(vm: KvmModel, gpa: int, as_id: int = 0) -> MemoryFaultExit | None:
    """An access of a vCPU: as ``userfault_exit``, and where it goes on, the page is mapped from then on."""
    with vm.lock:  # who switches the flag on, or takes the slot away, comes before or after
        exit_ = userfault_exit(vm, gpa, as_id)
        if exit_ is None:
            gfn = gpa // PAGE_SIZE
            slot = next(iter(vm.memslots.overlapping(gfn, gfn + 1, as_id)), None)
            if slot is not None and slot.key in vm.userfaults:
                vm.userfaults.mapped(slot.key).add(gfn - slot.base_gfn)
        return exit_
