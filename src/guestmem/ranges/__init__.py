"""A map from ranges to values: the maple tree's job, over flat words, with readers that take no lock.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .range_map import RangeMap
    from .snapshot import Ranges, RangeSnapshot

__all__ = ["RangeMap", "RangeSnapshot", "Ranges"]

_WHERE = {"RangeMap": "range_map", "RangeSnapshot": "snapshot", "Ranges": "snapshot"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
