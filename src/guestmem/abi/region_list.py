"""KVM_SET_USER_MEMORY_REGION_LIST as this project would have it: several changes, one instant, in one ioctl.

No kernel has it. The name and the list are those of the RFC of 9 September 2022 (Emanuele Giuseppe Esposito); what the
debate asked for is in the header: the address space, a limit (E2BIG), and where dirty pages go whose log ends.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import BatchError, MemslotError, UsageError
from ..memslots.changes import Change
from ..units import PAGE_SHIFT
from .structures import MemoryRegion, change_of
from .take_over import DirtyPage

__all__ = [
    "REGION_LIST",
    "REGION_LIST_ENTRIES",
    "REGION_LIST_REGION2",
    "REGION_LIST_SPACES",
    "RegionList",
    "pack_dirty",
]

REGION_LIST = 0xC020AEF0
"""The request: _IOWR(KVMIO, 0xf0, 32 bytes), a number that no kernel up to 7.3 uses on a VM."""
REGION_LIST_ENTRIES = 4096
"""Entries that a list may have; KVM_CHECK_EXTENSION would say so."""

REGION_LIST_REGION2, REGION_LIST_SPACES = 1, 2
"""Flags: entries are ``struct kvm_userspace_memory_region2``, and may have a guest_memfd; entries are of both address
spaces, each of that in the upper half of its slot, and ``as_id`` is 0."""

_HEADER = struct.Struct("<IIIIQQ")
_ENTRY, _ENTRY2 = 32, 160
_FLAGS = REGION_LIST_REGION2 | REGION_LIST_SPACES
_DIRTY = struct.Struct("<QQ")


class RegionList(NamedTuple):
    """The header, 32 bytes, and behind it ``regions``.

    Each is a ``struct kvm_userspace_memory_region``, 32 bytes; or the second form, 160 bytes, by a flag.

    ========  ====  ===============================================================================
    ``nent``  u32   entries, at most REGION_LIST_ENTRIES
    flags     u32   REGION_LIST_REGION2 1: entries of the second form; REGION_LIST_SPACES 2: of both spaces
    as_id     u32   address space; the upper half of each entry's ``slot`` is 0 (with SPACES: the other way)
    room      u32   entries that ``dirty`` has room for
    dirty     u64   address of {u64 gfn, u64 userspace_addr}: pages that were dirty when their log ended
    reserved  u64   0
    ========  ====  ===============================================================================

    The ioctl returns how many pages it wrote there. ENOSPC, with nothing changed, if there is not room for every page
    of every log that the entries end. Errors of an entry (BatchError) name it.

    >>> listed = RegionList([MemoryRegion(slot=0), MemoryRegion(slot=1, memory_size=0x1000)], as_id=1)
    >>> RegionList.unpack(listed.pack()) == listed, len(listed.pack())
    (True, 96)
    """

    regions: list[MemoryRegion]
    as_id: int = 0
    room: int = 0
    dirty: int = 0
    flags: int = 0
    reserved: int = 0

    def pack(self) -> bytes:
        """Header and entries; UsageError for what does not fit its field."""
        try:
            header = _HEADER.pack(len(self.regions), self.flags, self.as_id, self.room, self.dirty, self.reserved)
        except struct.error:
            raise UsageError(f"RegionList: a field of {self[1:]!r} is no whole number that fits") from None
        second = self.flags & REGION_LIST_REGION2
        return header + b"".join(region.pack2() if second else region.pack() for region in self.regions)

    @classmethod
    def entries_of(cls, header: bytes) -> int:
        """How many bytes of entries follow a header; MemslotError (E2BIG) for too many."""
        count, flags = _HEADER.unpack_from(header)[:2]
        if count > REGION_LIST_ENTRIES:
            raise MemslotError(errno.E2BIG, f"region list: nent {count}; {REGION_LIST_ENTRIES} are allowed")
        return int(count) * (_ENTRY2 if flags & REGION_LIST_REGION2 else _ENTRY)

    @classmethod
    def unpack(cls, argument: bytes) -> RegionList:
        """From header and entries; MemslotError: EFAULT for another number of bytes, E2BIG for too many entries."""
        if len(argument) < _HEADER.size:
            raise MemslotError(errno.EFAULT, f"region list: {len(argument)} bytes; the header has {_HEADER.size}")
        size = _HEADER.size + cls.entries_of(argument)
        if len(argument) != size:
            raise MemslotError(errno.EFAULT, f"region list: {len(argument)} bytes; header and entries have {size}")
        _, flags, as_id, room, dirty, reserved = _HEADER.unpack_from(argument)
        step = _ENTRY2 if flags & REGION_LIST_REGION2 else _ENTRY
        regions = [MemoryRegion.unpack(argument[at : at + step]) for at in range(_HEADER.size, size, step)]
        return cls(regions, as_id, room, dirty, flags, reserved)

    def changes(self, number_of: Callable[[MemoryRegion], int] | None = None) -> Iterator[Change]:
        """The entries as changes; MemslotError (EINVAL) for a header, BatchError for an entry, that cannot be.

        ``number_of`` gives what a slot says of a region's guest_memfd, by its descriptor; MemslotError if it is none.
        """
        if self.flags & ~_FLAGS or self.reserved:
            raise MemslotError(
                errno.EINVAL,
                f"region list: flags {self.flags:#x}, reserved {self.reserved:#x}; flags {_FLAGS:#x} are allowed, "
                "reserved is 0",
            )
        if self.as_id > 0xFFFF or (self.as_id and self.flags & REGION_LIST_SPACES):
            raise MemslotError(
                errno.EINVAL, f"region list: as_id {self.as_id} is no address space, or not 0 with SPACES"
            )
        for entry, region in enumerate(self.regions):
            if region.as_id and not self.flags & REGION_LIST_SPACES:
                raise BatchError(
                    errno.EINVAL,
                    f"slot {region.slot:#x}: its upper half is not 0; the header has the address space",
                    entry=entry,
                )
            low = region.guest_phys_addr | region.memory_size
            if low & ((1 << PAGE_SHIFT) - 1):
                raise BatchError(errno.EINVAL, f"slot {region.id}: gpa or size {low:#x} is not in pages", entry=entry)
            change = change_of(region)
            if change.guest_memfd:
                if not self.flags & REGION_LIST_REGION2:
                    why = f"slot {region.id}: flags {region.flags:#x} have a guest_memfd, and entries no room for one"
                    raise BatchError(errno.EINVAL, why, entry=entry)
                if number_of is not None and not change.deletes:
                    try:
                        change = change._replace(guest_memfd=number_of(region))
                    except MemslotError as error:
                        raise BatchError(error.errno or 0, str(error).partition(": ")[2], entry=entry) from None
            yield change if self.flags & REGION_LIST_SPACES else change._replace(as_id=self.as_id)


def pack_dirty(pages: list[DirtyPage]) -> bytes:
    """Pages as the ioctl writes them."""
    return b"".join(_DIRTY.pack(page.gfn, page.userspace_addr) for page in pages)
