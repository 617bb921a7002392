"""Why a change was refused, in words: from the reason that a compiled phase returned.

Source of the errnos: ``kvm_set_memory_region()`` and ``check_memory_region_flags()``, Linux 6.18.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..errors import MemslotError
from ..units import U64_MAX, format_frames
from . import phases
from .changes import Change
from .layout import DETAIL, KVM_MEM_MAX_NR_PAGES

if TYPE_CHECKING:
    from .set import Memslots

__all__ = ["refusal"]


def refusal(memslots: Memslots, reason: int, change: Change, ids: int) -> MemslotError:
    """The error for ``change``; ``ids`` is the limit its id was held to. ``reason`` 0: a field is no 64-bit word."""
    number, name = errno.EINVAL, f"slot {change.slot}"
    start, end = change.base_gfn, change.base_gfn + change.npages
    if reason == 0:
        field = next((f for f in change._fields if getattr(change, f) >> 64), "as_id")
        return MemslotError(number, f"{name}: {field} {getattr(change, field)} is not in 0..{U64_MAX:#x}")
    if reason == phases.ID_BAD:
        return MemslotError(number, f"slot: {change.slot} is not in 0..{ids - 1}")
    if reason == phases.NO_SLOT:
        return MemslotError(number, f"{name}: no such slot")
    if reason == phases.FLAGS_BAD:
        return MemslotError(
            number, f"{name}: flags {change.flags:#x} are not of KVM_MEM_LOG_DIRTY_PAGES 0x1, KVM_MEM_READONLY 0x2"
        )
    if reason == phases.TOO_LARGE:
        return MemslotError(number, f"{name}: npages {change.npages} is not in 0..{int(KVM_MEM_MAX_NR_PAGES)}")
    if reason == phases.GFN_WRAPS:
        return MemslotError(number, f"{name}: frames [{start:#x}, {end:#x}) do not end below frame 2**52")
    if reason == phases.HVA_UNALIGNED:
        return MemslotError(number, f"{name}: userspace_addr {change.userspace_addr:#x} is not a multiple of 0x1000")
    if reason == phases.HVA_WRAPS:
        return MemslotError(
            number,
            f"{name}: userspace_addr {change.userspace_addr:#x} with size {change.memory_size:#x} passes 2**64",
        )
    if reason == phases.OUT_OF_PHASE:
        return MemslotError(
            number, f"{name}: out of order: marks come first, and are published before anything is staged"
        )
    record = int(memslots.desk[DETAIL])
    other = memslots.slot_of(record)
    if reason == phases.OVERLAPS:
        return MemslotError(errno.EEXIST, f"{name}: {format_frames(start, end)} overlaps {other}")
    if reason == phases.EXISTS:
        return MemslotError(errno.EEXIST, f"{name}: it exists: {other}")
    field = {
        phases.HVA_DIFFERS: "userspace_addr",
        phases.NPAGES_DIFFER: "npages",
        phases.READONLY_DIFFERS: "flags",
    }[reason]
    return MemslotError(
        number,
        f"{name}: {field} {getattr(change, field):#x} differs from {getattr(other, field):#x}; an existing slot can "
        "only be moved, or its logging changed",
    )
