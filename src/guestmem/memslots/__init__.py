"""Memslots: which guest frames are which host memory, in two copies that readers never lock."""

from __future__ import annotations

from .changes import Change, ChangeKind, classify
from .slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEM_SLOTS_NUM, KVM_USER_MEM_SLOTS, Slot

__all__ = [
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_MEM_SLOTS_NUM",
    "KVM_USER_MEM_SLOTS",
    "Change",
    "ChangeKind",
    "Slot",
    "classify",
]
