"""The kernel engine: ``/dev/kvm`` by its ioctls, real vCPUs, and what designs need of it."""

from __future__ import annotations

from .capabilities import Cap
from .device import Device, Host, host, unusable
from .engine import KvmEngine
from .exits import (
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
from .load_engine import KvmLoadEngine
from .safety import Safety, safe_for_exit_retry
from .vcpu import KvmVcpu
from .vm import KvmVm
from .x86 import identity_tables, real_mode, user_mode

__all__ = [
    "Cap",
    "Device",
    "DirtyRingFull",
    "Exit",
    "FailEntry",
    "Hlt",
    "Host",
    "InternalError",
    "Io",
    "KvmEngine",
    "KvmLoadEngine",
    "KvmVcpu",
    "KvmVm",
    "MemoryFault",
    "Mmio",
    "OtherExit",
    "Safety",
    "Shutdown",
    "SystemEvent",
    "host",
    "identity_tables",
    "real_mode",
    "safe_for_exit_retry",
    "unusable",
    "user_mode",
]
