"""Which pages a guest wrote: bitmaps a slot, or rings a vCPU.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bitmap import DirtyBitmap
    from .ring import DirtyEntry, DirtyRing, Run

__all__ = ["DirtyBitmap", "DirtyEntry", "DirtyRing", "Run"]

_WHERE = {"DirtyBitmap": "bitmap", "DirtyEntry": "ring", "DirtyRing": "ring", "Run": "ring"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
