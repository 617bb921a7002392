"""Why a vCPU left the guest: the same values on both engines, by kind."""

from __future__ import annotations

from ..engines.kvm.exits import (
    DirtyRingFull,
    Exit,
    FailEntry,
    Hlt,
    InternalError,
    Io,
    MemoryFault,
    Mmio,
    OtherExit,
    Shutdown,
    SystemEvent,
)

__all__ = [
    "DirtyRingFull",
    "Exit",
    "FailEntry",
    "Hlt",
    "InternalError",
    "Io",
    "MemoryFault",
    "Mmio",
    "OtherExit",
    "Shutdown",
    "SystemEvent",
]
