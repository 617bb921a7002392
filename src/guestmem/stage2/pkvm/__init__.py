"""pKVM: who owns which page when the host itself is not trusted. ``el2`` is its face; see ``docs/pkvm.md``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .el2 import Pkvm, ProtectedVm
    from .states import Ownership, PageState

__all__ = ["Ownership", "PageState", "Pkvm", "ProtectedVm"]

_WHERE = {"Ownership": "states", "PageState": "states", "Pkvm": "el2", "ProtectedVm": "el2"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
