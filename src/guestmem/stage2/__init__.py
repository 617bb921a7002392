"""Stage-2 tables that many vCPUs build at once: descriptors, walker and operations, who frees what and when.

Names are found when first asked for: descriptors and geometry need neither NumPy nor Numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arm import ArmFormat, ArmLeaf, arm_stage2
    from .descriptor import Empty, Entry, Leaf, Locked, Malformed, Memory, Owned, Rights, Table
    from .format import Annotations, Format, InvalidType, guest_payload, host_payload
    from .geometry import Geometry, stage2_geometry
    from .npt import NptFormat, NptLeaf, NptTable, amd_npt
    from .pool import Pool
    from .printer import Range, dump, format_dump, format_tree
    from .table import DISCIPLINES, PageTable, Translation
    from .vtcr import Vtcr, vtcr_el2, vttbr_el2

__all__ = [
    "DISCIPLINES",
    "Annotations",
    "ArmFormat",
    "ArmLeaf",
    "Empty",
    "Entry",
    "Format",
    "Geometry",
    "InvalidType",
    "Leaf",
    "Locked",
    "Malformed",
    "Memory",
    "NptFormat",
    "NptLeaf",
    "NptTable",
    "Owned",
    "PageTable",
    "Pool",
    "Range",
    "Rights",
    "Table",
    "Translation",
    "Vtcr",
    "amd_npt",
    "arm_stage2",
    "dump",
    "format_dump",
    "format_tree",
    "guest_payload",
    "host_payload",
    "stage2_geometry",
    "vtcr_el2",
    "vttbr_el2",
]

_FILES = {
    "arm": "ArmFormat ArmLeaf arm_stage2",
    "descriptor": "Empty Entry Leaf Locked Malformed Memory Owned Rights Table",
    "format": "Annotations Format InvalidType guest_payload host_payload",
    "geometry": "Geometry stage2_geometry",
    "npt": "NptFormat NptLeaf NptTable amd_npt",
    "pool": "Pool",
    "printer": "Range dump format_dump format_tree",
    "table": "DISCIPLINES PageTable Translation",
    "vtcr": "Vtcr vtcr_el2 vttbr_el2",
}
_WHERE = {name: file for file, names in _FILES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
