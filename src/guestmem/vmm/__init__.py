"""The VMM's side of memory: regions laid over each other, the flat view they give, and the slots for it.

After QEMU's memory API; pure, without an engine. ``vm.map`` is the front that drives one.
"""

from __future__ import annotations

from .address_space import AddressSpace
from .cost import Cost, Difference, cost_of, difference
from .flatview import FlatRange, FlatView
from .kvm_listener import KvmListener
from .listener import Listener, Recorder
from .map import MemoryMap
from .plan import fewest, least
from .region import MemoryRegion, RegionKind
from .render import render
from .slots import Piece, fewest_pieces

__all__ = [
    "AddressSpace",
    "Cost",
    "Difference",
    "FlatRange",
    "FlatView",
    "KvmListener",
    "Listener",
    "MemoryMap",
    "MemoryRegion",
    "Piece",
    "Recorder",
    "RegionKind",
    "cost_of",
    "difference",
    "fewest",
    "fewest_pieces",
    "least",
    "render",
]
