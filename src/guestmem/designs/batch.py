"""Mark all slots that go INVALID, swap; apply all changes, swap: the 2022 RFC.

KVM_SET_USER_MEMORY_REGION_LIST, Emanuele Giuseppe Esposito, 9 September 2022. Between the swaps the slots are INVALID:
on x86 a page fault retries, which is what the RFC silently relies on; elsewhere the access exits.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.UPDATE


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes with two swaps (one, if nothing is deleted or moved)."""
    if not changes:
        return
    as_id = changes[0].as_id
    with engine.update(as_id) as update:
        goes = {
            change.slot
            for change in changes
            if (slot := engine.slot(change.slot, as_id)) and (change.deletes or change.base_gfn != slot.base_gfn)
        }
        protects = any(
            (slot := engine.slot(change.slot, as_id)) and change.slot not in goes and change.flags != slot.flags
            for change in changes
        )
        for slot_id in sorted(goes):
            update.invalidate(slot_id)
        if goes:
            update.swap()
            update.flush()
        update.stage_all(changes)
        update.swap()
        if protects:
            update.flush()
