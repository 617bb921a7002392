"""KVM's memory ABI: ioctl numbers, structures as bytes, flags, limits and capabilities.

Source: ``include/uapi/linux/kvm.h``, Linux 6.18 (7.3 is the same in all of these); limits from
``include/linux/kvm_host.h``. Everything is little-endian, as on x86-64 and arm64. ``pack`` and ``unpack`` raise
UsageError for a field, or a number of bytes, that the structure cannot have.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import UsageError
from ..memslots.changes import Change
from ..memslots.slot import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, SlotKey
from ..units import PAGE_SHIFT

__all__ = [
    "GUEST_MEMFD_FLAG_INIT_SHARED",
    "GUEST_MEMFD_FLAG_MMAP",
    "KVM_DIRTY_LOG_INITIALLY_SET",
    "KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_MEM_MAX_NR_PAGES",
    "MAX_VCPUS",
    "MAX_VCPU_IDS",
    "V1_FLAGS",
    "ClearDirtyLog",
    "CreateGuestMemfd",
    "DirtyLog",
    "EnableCap",
    "MemoryCap",
    "MemoryIoctl",
    "MemoryRegion",
    "PreFaultMemory",
    "change_of",
    "misfit",
    "packed",
    "region_of",
    "unpacked",
]

GUEST_MEMFD_FLAG_MMAP = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 1
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
KVM_DIRTY_LOG_INITIALLY_SET = 1 << 1
V1_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
"""Flags that KVM_SET_USER_MEMORY_REGION knows; the rest needs …REGION2."""
MAX_VCPU_IDS = 4096
MAX_VCPUS = 1024

_REGION = struct.Struct("<IIQQQ")
_REGION2 = struct.Struct("<IIQQQQI")  # the padding behind is never looked at, by no kernel
_REGION2_BYTES = 160
_DIRTY_LOG = struct.Struct("<IIQ")
_CLEAR_DIRTY_LOG = struct.Struct("<IIQQ")
_ENABLE_CAP = struct.Struct("<IIQQQQ64x")
_GUEST_MEMFD = struct.Struct("<QQ48x")
_PRE_FAULT = struct.Struct("<QQQ40x")


def packed(layout: struct.Struct, what: tuple[Any, ...]) -> bytes:
    """The first fields of a structure as bytes; UsageError names one that does not fit."""
    try:
        return layout.pack(*what)
    except struct.error:
        raise misfit(layout, type(what)._fields, what) from None  # type: ignore[attr-defined] # a NamedTuple


def misfit(layout: struct.Struct, names: Sequence[str], values: Sequence[object]) -> UsageError:
    """What to raise where ``values`` do not fit: it names the first."""
    codes = [code for code in layout.format if code in "IQ"]
    for code, name, value in zip(codes, names, values, strict=False):
        try:
            struct.pack(f"<{code}", value)
        except struct.error:
            most = (1 << 32 if code == "I" else 1 << 64) - 1
            return UsageError(f"{name}: {value!r} is not a whole number in 0..{most:#x}")
    raise AssertionError(values)


def unpacked(layout: struct.Struct, argument: bytes | bytearray | memoryview, name: str) -> tuple[int, ...]:
    """The fields of a structure from bytes; UsageError for any other number of bytes."""
    try:
        return layout.unpack(argument)
    except (struct.error, TypeError):
        raise UsageError(f"{name}: {_shown(argument)}; the structure has {layout.size} bytes") from None


def _shown(argument: object) -> str:
    if isinstance(argument, bytes | bytearray | memoryview):
        return f"{memoryview(argument).nbytes} bytes"
    return f"{argument!r:.40} is no bytes"


class MemoryIoctl(enum.IntEnum):
    """Requests on a VM that concern its memory; the size of the argument is in bits 16 to 29."""

    CREATE_VCPU = 0x0000AE41
    GET_DIRTY_LOG = 0x4010AE42
    SET_NR_MMU_PAGES = 0x0000AE44
    SET_USER_MEMORY_REGION = 0x4020AE46
    SET_USER_MEMORY_REGION2 = 0x40A0AE49
    CHECK_EXTENSION = 0x0000AE03
    ENABLE_CAP = 0x4068AEA3
    CLEAR_DIRTY_LOG = 0xC018AEC0
    RESET_DIRTY_RINGS = 0x0000AEC7
    SET_MEMORY_ATTRIBUTES = 0x4020AED2
    CREATE_GUEST_MEMFD = 0xC040AED4

    @property
    def argument_bytes(self) -> int:
        """Size of the structure that the argument points to; 0: the argument is a number.

        >>> MemoryIoctl.SET_USER_MEMORY_REGION2.argument_bytes
        160
        """
        return int(self) >> 16 & 0x3FFF


class MemoryCap(enum.IntEnum):
    """Capabilities that concern memory."""

    MMU_SHADOW_CACHE_CONTROL = 2
    USER_MEMORY = 3
    NR_MEMSLOTS = 10
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    JOIN_MEMORY_REGIONS_WORKS = 30
    READONLY_MEM = 81
    MULTI_ADDRESS_SPACE = 118
    MANUAL_DIRTY_LOG_PROTECT = 166
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    DIRTY_LOG_RING = 192
    DIRTY_LOG_RING_ACQ_REL = 223
    DIRTY_LOG_RING_WITH_BITMAP = 225
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    PRE_FAULT_MEMORY = 236
    GUEST_MEMFD_FLAGS = 244


class MemoryRegion(NamedTuple):
    """``struct kvm_userspace_memory_region2``; the first form (32 bytes) has all but the last two fields.

    >>> region = MemoryRegion(slot=1 << 16 | 4, memory_size=0x1000)
    >>> region.id, region.as_id, len(region.pack()), len(region.pack2())
    (4, 1, 32, 160)
    >>> MemoryRegion.unpack(region.pack2()) == region
    True
    >>> MemoryRegion(slot=0, memory_size=-4096).pack()
    Traceback (most recent call last):
    guestmem.errors.UsageError: memory_size: -4096 is not a whole number in 0..0xffffffffffffffff
    """

    slot: int
    """Bits 0 to 15 the slot's id, 16 to 31 its address space."""
    flags: int = 0
    guest_phys_addr: int = 0
    memory_size: int = 0
    """Bytes; 0 deletes."""
    userspace_addr: int = 0
    guest_memfd_offset: int = 0
    guest_memfd: int = 0

    @property
    def key(self) -> SlotKey:
        """Which slot it is about."""
        return SlotKey.of(self.slot)

    @property
    def id(self) -> int:
        """The slot's id."""
        return self.key.slot

    @property
    def as_id(self) -> int:
        """The slot's address space."""
        return self.key.as_id

    def pack(self) -> bytes:
        """As the 32 bytes of the first form."""
        try:
            return _REGION.pack(*self[:5])
        except struct.error:
            raise misfit(_REGION, self._fields, self) from None

    def pack2(self) -> bytes:
        """As the 160 bytes of the second form."""
        return packed(_REGION2, self).ljust(_REGION2_BYTES, b"\0")

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> MemoryRegion:
        """From either form, by its length; padding is not looked at."""
        try:
            if len(argument) == _REGION2_BYTES:
                return cls._make(_REGION2.unpack_from(argument))
            return cls(*_REGION.unpack(argument))
        except (struct.error, TypeError):
            raise UsageError(
                f"MemoryRegion: {_shown(argument)}; the structure has {_REGION.size} or {_REGION2_BYTES} bytes"
            ) from None


class PreFaultMemory(NamedTuple):
    """``struct kvm_pre_fault_memory``: bytes from ``gpa`` on; as the call leaves it, what is left.

    >>> PreFaultMemory.unpack(PreFaultMemory(0x1000, 0x2000).pack())
    PreFaultMemory(gpa=4096, size=8192, flags=0)
    """

    gpa: int
    size: int
    flags: int = 0

    def pack(self) -> bytes:
        """The 64 bytes."""
        return packed(_PRE_FAULT, self)

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> PreFaultMemory:
        """From 64 bytes."""
        return cls(*unpacked(_PRE_FAULT, argument, "kvm_pre_fault_memory"))


def change_of(region: MemoryRegion) -> Change:
    """A region as a change: whole frames only. ``guest_memfd`` is the file, and one more: 0 is none."""
    bound = region.flags & KVM_MEM_GUEST_MEMFD
    return Change(
        region.id,
        region.guest_phys_addr >> PAGE_SHIFT,
        region.memory_size >> PAGE_SHIFT,
        region.userspace_addr,
        region.flags,
        region.as_id,
        region.guest_memfd + 1 if bound else 0,
        region.guest_memfd_offset if bound else 0,
    )


def region_of(change: Change) -> MemoryRegion:
    """A change as the ioctl's structure, for a slot without a guest_memfd.

    >>> region_of(Change(3, 1, 2, 0x7000))
    MemoryRegion(slot=3, flags=0, guest_phys_addr=4096, memory_size=8192, userspace_addr=28672, \
guest_memfd_offset=0, guest_memfd=0)
    """
    slot, _, _, userspace_addr, flags, as_id, *_ = change
    return MemoryRegion(SlotKey(as_id, slot).word, flags, change.guest_phys_addr, change.memory_size, userspace_addr)


class DirtyLog(NamedTuple):
    """``struct kvm_dirty_log``, 16 bytes: argument of KVM_GET_DIRTY_LOG."""

    slot: int
    padding: int = 0
    dirty_bitmap: int = 0
    """User address of the bitmap."""

    def pack(self) -> bytes:
        """As 16 bytes."""
        return packed(_DIRTY_LOG, self)

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> DirtyLog:
        """From 16 bytes."""
        return cls._make(unpacked(_DIRTY_LOG, argument, cls.__name__))


class ClearDirtyLog(NamedTuple):
    """``struct kvm_clear_dirty_log``, 24 bytes: argument of KVM_CLEAR_DIRTY_LOG."""

    slot: int
    num_pages: int = 0
    first_page: int = 0
    dirty_bitmap: int = 0
    """User address of the bits to clear; bit 0 is ``first_page``."""

    def pack(self) -> bytes:
        """As 24 bytes."""
        return packed(_CLEAR_DIRTY_LOG, self)

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> ClearDirtyLog:
        """From 24 bytes."""
        return cls._make(unpacked(_CLEAR_DIRTY_LOG, argument, cls.__name__))


class EnableCap(NamedTuple):
    """``struct kvm_enable_cap``, 104 bytes."""

    cap: int
    flags: int = 0
    arg0: int = 0
    arg1: int = 0
    arg2: int = 0
    arg3: int = 0

    def pack(self) -> bytes:
        """As 104 bytes."""
        return packed(_ENABLE_CAP, self)

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> EnableCap:
        """From 104 bytes."""
        return cls._make(unpacked(_ENABLE_CAP, argument, cls.__name__))


class CreateGuestMemfd(NamedTuple):
    """``struct kvm_create_guest_memfd``, 64 bytes."""

    size: int
    flags: int = 0

    def pack(self) -> bytes:
        """As 64 bytes."""
        return packed(_GUEST_MEMFD, self)

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> CreateGuestMemfd:
        """From 64 bytes."""
        return cls._make(unpacked(_GUEST_MEMFD, argument, cls.__name__))
