"""Stage-2 tables that many vCPUs build at once: descriptors, walker and operations, who frees what and when.

Names are found when first asked for: descriptors and geometry need neither NumPy nor Numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .arm import ArmFormat as ArmFormat
    from .arm import ArmLeaf as ArmLeaf
    from .arm import arm_stage2 as arm_stage2
    from .descriptor import Empty as Empty
    from .descriptor import Entry as Entry
    from .descriptor import Leaf as Leaf
    from .descriptor import Locked as Locked
    from .descriptor import Malformed as Malformed
    from .descriptor import Memory as Memory
    from .descriptor import Owned as Owned
    from .descriptor import Rights as Rights
    from .descriptor import Table as Table
    from .format import Annotations as Annotations
    from .format import Format as Format
    from .format import InvalidType as InvalidType
    from .format import guest_payload as guest_payload
    from .format import host_payload as host_payload
    from .geometry import Geometry as Geometry
    from .geometry import stage2_geometry as stage2_geometry
    from .npt import NptFormat as NptFormat
    from .npt import NptLeaf as NptLeaf
    from .npt import NptTable as NptTable
    from .npt import amd_npt as amd_npt
    from .pool import Pool as Pool
    from .printer import Range as Range
    from .printer import dump as dump
    from .printer import format_dump as format_dump
    from .printer import format_tree as format_tree
    from .table import DISCIPLINES as DISCIPLINES
    from .table import PageTable as PageTable
    from .table import Translation as Translation
    from .vtcr import Vtcr as Vtcr
    from .vtcr import vtcr_el2 as vtcr_el2
    from .vtcr import vttbr_el2 as vttbr_el2

face(globals())
