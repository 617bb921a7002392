"""Stop all vCPUs only if a removed range overlaps an added one: QEMU since 8.0.

Pure adds, pure deletes and flag changes stop nobody. Beside QEMU's condition there is one more: QEMU ends where KVM
refuses a change; here what was done is taken back, and vCPUs that run would meet the gap. Source:
``kvm_region_commit()`` and accel-blocker, QEMU 10.2, January 2023; the condition is David Hildenbrand's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..errors import BatchError
from ..memslots import Change, Slot
from . import pause, sequential

__all__ = ["NEEDS", "adding_first", "apply", "overlaps", "prepare"]

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


def adding_first(changes: Sequence[Change], slots: dict[int, Slot]) -> list[int] | None:
    """The places of ``changes`` in an order in which nothing is removed before all else is done; None if there is none.

    There is none with a move, which removes and adds at once, nor where a slot is in two changes. O(n).

    >>> slots = {1: Slot(as_id=0, id=1, base_gfn=0, npages=8, userspace_addr=0)}
    >>> adding_first([Change(slot=1), Change(slot=2, base_gfn=8, npages=8)], slots)
    [1, 0]
    >>> adding_first([Change(slot=1, base_gfn=64, npages=8)], slots)
    """
    places = range(len(changes))
    if any(
        not change.deletes and (old := slots.get(change.slot)) is not None and old.base_gfn != change.base_gfn
        for change in changes
    ):
        return None
    order = sorted(places, key=lambda place: changes[place].deletes)
    if order == [*places] or len({change.slot for change in changes}) == len(changes):
        return order
    return None


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes, pausing if a removed range overlaps an added one, or if taking back could be seen.

    What an engine refuses in the middle is taken back, and who runs would miss what was removed. So what is added comes
    first, and vCPUs stop where that cannot be: see ``adding_first``. Not kept from them: of several deletes the second,
    refused for want of memory (a delete allocates a little, too), has the first taken back while they run. Nor, on the
    kernel, that a locked increment, read from a device when memory came there, overwrites it: docs/exit-retry.md.
    """
    ids = {change.slot for change in changes}
    as_id = changes[0].as_id if changes else 0
    before = {slot_id: slot for slot_id in ids if (slot := engine.slot(slot_id, as_id)) is not None}
    order = None if overlaps(changes, before) else adding_first(changes, before)
    if order is None:
        pause.apply(engine, changes)
        return
    try:
        sequential.apply(engine, [changes[place] for place in order])
    except BatchError:
        if order == sorted(order):
            raise
        pause.apply(engine, changes)  # what was added did not fit beside what is removed, or the entry's place is asked
