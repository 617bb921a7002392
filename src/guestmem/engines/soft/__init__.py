"""The software engine: vCPU threads that touch real memory while it is updated beneath them."""

from __future__ import annotations

from .engine import FLUX_MAX, Report, SoftEngine, VcpuCounts
from .load import PATTERNS, Access, Load, Target, host_words
from .memory import HostMemory
from .update import SoftUpdate

__all__ = [
    "FLUX_MAX",
    "PATTERNS",
    "Access",
    "HostMemory",
    "Load",
    "Report",
    "SoftEngine",
    "SoftUpdate",
    "Target",
    "VcpuCounts",
    "host_words",
]
