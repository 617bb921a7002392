"""What the fields of a change can be: those of ``struct kvm_userspace_memory_region``."""

from __future__ import annotations

from ..memslots.slot import KVM_MEM_SLOTS_NUM
from ..units import PAGE_SIZE, U64_MAX

__all__ = ["MAX_SIZE", "U32_MAX", "impossible_field"]

MAX_SIZE = ((1 << 31) - 1) << 16
"""KVM_MEM_MAX_NR_PAGES in bytes, with the largest pages (arm64, 64 KiB): dirty bitmaps have unsigned int indices."""
U32_MAX = (1 << 32) - 1


def impossible_field(slot: int, flags: int, gpa: int, size: int, hva: int, ret: int) -> str:
    """The first field that cannot be, or that KVM would have refused, yet did not, and why; "" if there is none."""
    addresses = (("guest_phys_addr", gpa), ("memory_size", size), ("userspace_addr", hva))
    for name, value in (("slot", slot), ("flags", flags)):
        if value > U32_MAX:
            return f"{name} {value:#x} has more than 32 bits"
    for name, value in addresses:
        if value > U64_MAX:
            return f"{name} {value:#x} is past 2^64"
    if ret < 0:
        return ""
    for name, value in addresses:
        if value & (PAGE_SIZE - 1):
            return f"{name} {value:#x} is not a multiple of the page size {PAGE_SIZE:#x}"
    for name, value in (addresses[0], addresses[2]):
        if value + size > U64_MAX and (size or name == "guest_phys_addr"):
            return f"{name} {value:#x} + memory_size {size:#x} reaches past 2^64 - 1"
    if size > MAX_SIZE:
        return f"memory_size {size:#x} is more than {MAX_SIZE:#x}, the most a slot can have"
    if slot & 0xFFFF >= KVM_MEM_SLOTS_NUM:
        return f"slot {slot & 0xFFFF}: below {KVM_MEM_SLOTS_NUM} is allowed, yet ret={ret}"
    return ""
