"""What a capability's number means, by the tree that a kernel is built from: past 244 it is not one thing everywhere.

Vendors carry series that were not merged, under numbers that mainline gave to others since; openEuler counts from 500.
So a number is read together with its tree. Source: ``include/uapi/linux/kvm.h`` of mainline up to 7.3 and of kvm-x86
(for 7.4); "KVM Userfault" v3, linux-kvm, June 2025, which Amazon's kernel carries; openEuler's HDBSS series.
"""

from __future__ import annotations

from .structures import MemoryCap

__all__ = ["CAPABILITIES", "MAINLINE", "TREES", "capability_name"]

MAINLINE = "mainline"
_NUMBERS: dict[int, dict[str, str]] = {
    245: {MAINLINE: "ARM_SEA_TO_USER", "amazon": "USERFAULT"},
    246: {MAINLINE: "S390_USER_OPEREXEC"},
    247: {MAINLINE: "S390_KEYOP"},
    248: {MAINLINE: "S390_VSIE_ESAMODE"},
    249: {MAINLINE: "S390_HPAGE_2G"},
    250: {MAINLINE: "GUEST_MEMFD_MEMORY_ATTRIBUTES"},
    502: {"openeuler": "ARM_HW_DIRTY_STATE_TRACK"},
}
CAPABILITIES: dict[int, dict[str, str]] = {int(cap): {MAINLINE: cap.name} for cap in MemoryCap} | _NUMBERS
"""Number: tree: name."""
TREES = tuple(sorted({tree for names in CAPABILITIES.values() for tree in names}))


def capability_name(number: int, tree: str = MAINLINE) -> str:
    """What a capability is called in ``tree``; "" if nobody there has that number. Up to 244, all trees agree.

    >>> capability_name(245), capability_name(245, "amazon"), capability_name(234, "amazon")
    ('ARM_SEA_TO_USER', 'USERFAULT', 'GUEST_MEMFD')
    >>> capability_name(502), capability_name(502, "openeuler")
    ('', 'ARM_HW_DIRTY_STATE_TRACK')
    """
    names = CAPABILITIES.get(number, {})
    return names.get(tree, names.get(MAINLINE, "") if number <= max(MemoryCap) else "")
