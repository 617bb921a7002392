"""KVM's memory ABI: its ioctls' structures, the kernels' answers by version, and a model of one VM (``abi.model``)."""

from __future__ import annotations

from .checks import Host
from .structures import (
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryCap,
    MemoryIoctl,
    MemoryRegion,
)
from .versions import KernelVersion, version_of

__all__ = [
    "ClearDirtyLog",
    "CreateGuestMemfd",
    "DirtyLog",
    "EnableCap",
    "Host",
    "KernelVersion",
    "MemoryCap",
    "MemoryIoctl",
    "MemoryRegion",
    "version_of",
]
