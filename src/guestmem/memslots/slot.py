"""A memslot: a range of guest frames backed by one range of host memory.

Fields and flags are those of ``struct kvm_memory_slot`` and ``KVM_SET_USER_MEMORY_REGION`` (Linux 6.18,
``include/linux/kvm_host.h``, ``include/uapi/linux/kvm.h``).
"""

from __future__ import annotations

from typing import NamedTuple

from ..slot_key import SlotKey
from ..units import PAGE_SHIFT, format_frames

__all__ = [
    "KVM_MEMSLOT_NR",
    "KVM_MEMSLOT_NX",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_MEM_SLOTS_NUM",
    "KVM_USER_MEM_SLOTS",
    "Slot",
    "SlotKey",
]

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2
KVM_MEMSLOT_NR, KVM_MEMSLOT_NX = 1 << 17, 1 << 19
"""No reads, no fetches: in no KVM flags of a slot, nor taken by the model of its ioctls. The software engine keeps in
its slots what KVM would keep above them: attributes NR and NX (posted in June 2024); NW is KVM_MEM_READONLY."""

KVM_MEM_SLOTS_NUM = 32767
"""Slots in one address space, internal ones included (SHRT_MAX)."""
KVM_USER_MEM_SLOTS = 32764
"""Slots that user space may use on x86: three are internal (TSS, APIC access page, identity map)."""


class Slot(NamedTuple):
    """One memslot; immutable, ordered by address space and id.

    Frames ``[base_gfn, base_gfn + npages)`` of the guest are the host bytes from ``userspace_addr`` on.
    ``guest_memfd`` is a number that one file alone has (0: none is bound), ``guest_memfd_offset`` where in it the slot
    begins, in bytes; ``attributes`` a number that is another for memory with other attributes.

    >>> slot = Slot(as_id=0, id=4, base_gfn=0x100, npages=0xFF00, userspace_addr=0x7F0000000000)
    >>> slot
    Slot 4 [0x100000, 0x10000000) 255 MiB -> 0x7f0000000000
    >>> hex(slot.hva(0x101))
    '0x7f0000001000'
    """

    as_id: int
    id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int = 0
    guest_memfd: int = 0
    guest_memfd_offset: int = 0
    attributes: int = 0

    @property
    def key(self) -> SlotKey:
        """Address space and id."""
        return SlotKey(self.as_id, self.id)

    @property
    def end_gfn(self) -> int:
        """First frame after the slot."""
        return self.base_gfn + self.npages

    @property
    def readonly(self) -> bool:
        """Whether guest writes exit as MMIO (KVM_MEM_READONLY)."""
        return bool(self.flags & KVM_MEM_READONLY)

    @property
    def logs_dirty_pages(self) -> bool:
        """Whether guest writes are logged (KVM_MEM_LOG_DIRTY_PAGES)."""
        return bool(self.flags & KVM_MEM_LOG_DIRTY_PAGES)

    def hva(self, gfn: int) -> int:
        """Host address of the first byte of frame ``gfn``, which must be inside. O(1)."""
        return self.userspace_addr + ((gfn - self.base_gfn) << PAGE_SHIFT)

    def part(self, start_gfn: int, end_gfn: int, name: int | None = None) -> Slot:
        """The slot of frames ``[start_gfn, end_gfn)`` on the same memory, with the same flags; ``name``: its id.

        >>> Slot(as_id=0, id=4, base_gfn=8, npages=8, userspace_addr=0x10000).part(10, 12, 5)
        Slot 5 [0xa000, 0xc000) 8 KiB -> 0x12000
        """
        as_id, id_, base_gfn, _, hva, flags, file, offset, attributes = self
        skipped = (start_gfn - base_gfn) << PAGE_SHIFT
        id_ = id_ if name is None else name
        offset = offset + skipped if file else offset
        fields = (as_id, id_, start_gfn, end_gfn - start_gfn, hva + skipped, flags, file, offset, attributes)
        return tuple.__new__(Slot, fields)

    def __repr__(self) -> str:
        space = f"{self.as_id}:" if self.as_id else ""
        flags = (" ro" if self.readonly else "") + (" log" if self.logs_dirty_pages else "")
        flags += f" guest_memfd {self.guest_memfd}+{self.guest_memfd_offset:#x}" if self.guest_memfd else ""
        return f"Slot {space}{self.id} {format_frames(self.base_gfn, self.end_gfn)} -> {self.userspace_addr:#x}{flags}"
