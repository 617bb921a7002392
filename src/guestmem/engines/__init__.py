"""Engines: what carries updates out. ``soft`` runs anywhere, ``kvm`` drives ``/dev/kvm``; each says what it can do.

What both take and give stands beside them: loads, what vCPUs report, host memory.
"""

from __future__ import annotations

from .host_memory import HostMemory
from .load import PATTERNS, Access, Load, Target, host_words
from .protocol import Capability, Counts, Engine, MeasuredEngine, Update
from .registry import ENGINES, measured_engine
from .report import LoadReport, VcpuCounts

__all__ = [
    "ENGINES",
    "PATTERNS",
    "Access",
    "Capability",
    "Counts",
    "Engine",
    "HostMemory",
    "Load",
    "LoadReport",
    "MeasuredEngine",
    "Target",
    "Update",
    "VcpuCounts",
    "host_words",
    "measured_engine",
]
