"""guestmem: KVM's guest-memory subsystem as a library and a laboratory.

Names are found when first asked for (PEP 562): ``import guestmem`` loads neither NumPy nor Numba, and nothing
compiles at import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check as check_trace
    from .errors import (
        BatchError,
        CapabilityError,
        GuestmemError,
        InvariantError,
        MemslotError,
        TraceError,
        UsageError,
    )
    from .memslots.changes import Change, ChangeKind
    from .memslots.set import Memslots
    from .memslots.slot import Slot
    from .traces import read as read_trace
    from .vm import Vm

    __version__: str

__all__ = [
    "BatchError",
    "CapabilityError",
    "Change",
    "ChangeKind",
    "GuestmemError",
    "InvariantError",
    "MemslotError",
    "Memslots",
    "Slot",
    "TraceError",
    "UsageError",
    "Vm",
    "__version__",
    "check_trace",
    "read_trace",
]

_WHERE = {
    "BatchError": ("errors", "BatchError"),
    "CapabilityError": ("errors", "CapabilityError"),
    "Change": ("memslots.changes", "Change"),
    "ChangeKind": ("memslots.changes", "ChangeKind"),
    "GuestmemError": ("errors", "GuestmemError"),
    "InvariantError": ("errors", "InvariantError"),
    "MemslotError": ("errors", "MemslotError"),
    "Memslots": ("memslots.set", "Memslots"),
    "Slot": ("memslots.slot", "Slot"),
    "TraceError": ("errors", "TraceError"),
    "UsageError": ("errors", "UsageError"),
    "Vm": ("vm", "Vm"),
    "check_trace": ("check", "check"),
    "read_trace": ("traces", "read"),
}
"""Module and name there of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("guestmem")
    elif name in _WHERE:
        module, attribute = _WHERE[name]
        value = getattr(importlib.import_module(f".{module}", __name__), attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
