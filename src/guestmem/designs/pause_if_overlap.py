"""Stop all vCPUs only if a removed range overlaps an added one: QEMU since 8.0.

Pure adds, pure deletes and flag changes stop nobody. Source: ``kvm_region_commit()`` and accel-blocker, QEMU 10.2,
January 2023; the condition is David Hildenbrand's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change, Slot
from . import pause, sequential

__all__ = ["NEEDS", "apply", "overlaps", "prepare"]

NEEDS = Capability.SET_MEMORY_REGION | Capability.PAUSE


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def overlaps(changes: Sequence[Change], slots: dict[int, Slot]) -> bool:
    """Whether a range that ``changes`` remove overlaps one that they add; ``slots`` by id, before. O(n log n).

    The source of a move counts as removed, its target as added.

    >>> slot = Slot(as_id=0, id=1, base_gfn=0, npages=8, userspace_addr=0)
    >>> overlaps([Change(slot=1), Change(slot=2, base_gfn=4, npages=8)], {1: slot})
    True
    >>> overlaps([Change(slot=1), Change(slot=2, base_gfn=8, npages=8)], {1: slot})
    False
    """
    removed, added = [], []
    slots = dict(slots)
    for change in changes:
        old = slots.pop(change.slot, None)
        if not change.deletes:
            slots[change.slot] = change.as_slot()
        if old is not None and (change.deletes or old.base_gfn != change.base_gfn):
            removed.append((old.base_gfn, old.end_gfn))
        if not change.deletes and (old is None or old.base_gfn != change.base_gfn):
            added.append((change.base_gfn, change.base_gfn + change.npages))
    removed.sort()
    reach = 0
    place = 0
    for start, end in sorted(added):
        while place < len(removed) and removed[place][0] < end:
            reach = max(reach, removed[place][1])
            place += 1
        if reach > start:
            return True
    return False


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes, pausing if a removed range overlaps an added one."""
    ids = {change.slot for change in changes}
    as_id = changes[0].as_id if changes else 0
    before = {slot_id: slot for slot_id in ids if (slot := engine.slot(slot_id, as_id)) is not None}
    (pause if overlaps(changes, before) else sequential).apply(engine, changes)
