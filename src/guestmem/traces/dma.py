"""Mappings for devices that were taken and given back: what QEMU's VFIO listener did beside KVM's.

QEMU calls ``region_del`` and ``region_add`` of each listener for the same change of its memory map; VFIO unmaps and
maps at once, KVM's listener at the end of the transaction (``hw/vfio/listener.c``, ``accel/kvm/kvm-all.c``). A device
that reads or writes in between gets an IOMMU fault. That is no hole that a vCPU sees, and no verdict is said of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .timeline import DmaChange

__all__ = ["about_dma", "windows"]

LATEST = 60.0
"""Seconds after which a mapping that comes back is another one."""
MOST = 4096
"""Unmapped ranges that are looked at, at most."""


def windows(changes: Sequence[DmaChange]) -> list[tuple[DmaChange, DmaChange]]:
    """Each unmapping with the mapping that gave some of its addresses back. O(n · ranges that are unmapped)."""
    found = []
    missing: list[DmaChange] = []
    for each in changes:
        if each.userspace_addr is None:
            missing = [*missing[-MOST:], each]
            continue
        for gone in list(missing):
            if gone.start < each.start + each.size and each.start < gone.start + gone.size:
                missing.remove(gone)
                if gone.time is None or each.time is None or each.time - gone.time <= LATEST:
                    found.append((gone, each))
    return found


def about_dma(changes: Sequence[DmaChange]) -> str:
    """A sentence about ``windows``, or "" if there is nothing to say."""
    if not changes:
        return ""
    found = windows(changes)
    if not found:
        return f"QEMU's VFIO listener mapped and unmapped {len(changes)} ranges for devices, none of which came back"
    longest = max(found, key=lambda pair: (pair[1].time or 0.0) - (pair[0].time or 0.0))
    text = (
        f"QEMU's VFIO listener unmapped {len(found)} range{'s' * (len(found) != 1)} from devices and mapped them again"
    )
    if longest[0].time is not None and longest[1].time is not None:
        text += f", for at most {(longest[1].time - longest[0].time) * 1e6:.0f} µs"
    return f"{text} (lines {longest[0].line}-{longest[1].line}): a device's DMA can fail there"
