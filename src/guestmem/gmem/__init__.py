"""guest_memfd: memory for guests that the host may touch or may not, page by page.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bindings import Bound
    from .file import GuestMemfd, GuestPage
    from .host_mapping import HostMapping
    from .pin import Pin
    from .vm_attributes import VmMemoryAttributes

__all__ = ["Bound", "GuestMemfd", "GuestPage", "HostMapping", "Pin", "VmMemoryAttributes"]

_WHERE = {
    "Bound": "bindings",
    "GuestMemfd": "file",
    "GuestPage": "file",
    "HostMapping": "host_mapping",
    "Pin": "pin",
    "VmMemoryAttributes": "vm_attributes",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
