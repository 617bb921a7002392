"""Memslots: which guest frames are which host memory, in two copies that readers never lock.

Names with compiled code behind them are found when first asked for, so that traces are read without Numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .changes import Action, Change, ChangeKind, Effect
from .checks import classify
from .slot import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEM_SLOTS_NUM,
    KVM_USER_MEM_SLOTS,
    Slot,
    SlotKey,
)

if TYPE_CHECKING:
    from .layout import KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, KVM_MEMSLOT_INVALID
    from .set import Memslots
    from .update import Update

__all__ = [
    "KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS",
    "KVM_MEMSLOT_INVALID",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_MEM_SLOTS_NUM",
    "KVM_USER_MEM_SLOTS",
    "Action",
    "Change",
    "ChangeKind",
    "Effect",
    "Memslots",
    "Slot",
    "SlotKey",
    "Update",
    "classify",
]

_WHERE = {
    "KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS": "layout",
    "KVM_MEMSLOT_INVALID": "layout",
    "Memslots": "set",
    "Update": "update",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
