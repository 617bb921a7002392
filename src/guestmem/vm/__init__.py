"""The library's front door: a VM, its memory, its vCPUs and their exits, on the software engine or on ``/dev/kvm``.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..abi.model import KvmModel
    from .accesses import Fetch, Read, Write
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
    from .memory import Memory
    from .transaction import DirtyPage, Transaction
    from .vcpu import SoftVcpu
    from .vm import Vm

__all__ = [
    "DirtyPage",
    "DirtyRingFull",
    "Exit",
    "FailEntry",
    "Fetch",
    "Hlt",
    "InternalError",
    "Io",
    "KvmModel",
    "Memory",
    "MemoryFault",
    "Mmio",
    "OtherExit",
    "Read",
    "Shutdown",
    "SoftVcpu",
    "SystemEvent",
    "Transaction",
    "Vm",
    "Write",
]

_WHERE = {
    "DirtyPage": "transaction",
    "Fetch": "accesses",
    "KvmModel": ".abi.model",
    "Memory": "memory",
    "Read": "accesses",
    "SoftVcpu": "vcpu",
    "Transaction": "transaction",
    "Vm": "vm",
    "Write": "accesses",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE.get(name, 'exits')}", __name__), name)
    globals()[name] = value
    return value
