"""Traces: what a VMM did to its memslots, read from any recording into one Timeline.

Pure: files in, values out. Formats: see ``formats``; how changes are grouped into transactions: ``grouping``.
"""

from __future__ import annotations

from .evidence import Irqchip, Loss, Stretch, Where
from .grouping import DEFAULT_GAP
from .reading import read, read_run_state
from .timeline import (
    DirtyLogClear,
    GlobalDirtyChange,
    RecordedChange,
    RunState,
    Timeline,
    Transaction,
    Vcpu,
)

__all__ = [
    "DEFAULT_GAP",
    "DirtyLogClear",
    "GlobalDirtyChange",
    "Irqchip",
    "Loss",
    "RecordedChange",
    "RunState",
    "Stretch",
    "Timeline",
    "Transaction",
    "Vcpu",
    "Where",
    "read",
    "read_run_state",
]
