"""Memslots: which guest frames are which host memory, in two copies that readers never lock.

Names with compiled code behind them are found when first asked for, so that traces are read without Numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .changes import Action as Action
    from .changes import Change as Change
    from .changes import ChangeKind as ChangeKind
    from .changes import Effect as Effect
    from .checks import classify as classify
    from .layout import KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS as KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
    from .layout import KVM_MEMSLOT_INVALID as KVM_MEMSLOT_INVALID
    from .set import Memslots as Memslots
    from .slot import KVM_MEM_GUEST_MEMFD as KVM_MEM_GUEST_MEMFD
    from .slot import KVM_MEM_LOG_DIRTY_PAGES as KVM_MEM_LOG_DIRTY_PAGES
    from .slot import KVM_MEM_READONLY as KVM_MEM_READONLY
    from .slot import KVM_MEM_SLOTS_NUM as KVM_MEM_SLOTS_NUM
    from .slot import KVM_MEMSLOT_NR as KVM_MEMSLOT_NR
    from .slot import KVM_MEMSLOT_NX as KVM_MEMSLOT_NX
    from .slot import KVM_USER_MEM_SLOTS as KVM_USER_MEM_SLOTS
    from .slot import Slot as Slot
    from .slot import SlotKey as SlotKey
    from .update import Update as Update

face(globals())
