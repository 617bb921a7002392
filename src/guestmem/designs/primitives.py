"""Split, merge, grow, truncate, toggle read-only as calls of their own; all else one call a change, as today.

The primitives that Sean Christopherson proposed instead of a batch (kvm list, September 2022): each keeps translations
and dirty bits, since the host memory of every frame that it keeps stays. A transaction is taken apart into parts that
share no frame; a part that keeps the host memory is one primitive, any other (memory that goes, comes, or is backed by
other memory) is carried out as by ``sequential``, hole included. Between two parts vCPUs see one done, the other not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..engines import Capability, Engine
from ..memslots import Change, Slot
from ..units import PAGE_SHIFT
from . import atomic, sequential

__all__ = ["NEEDS", "apply", "apply_with", "keeps_memory", "parts", "prepare"]

NEEDS = Capability.UPDATE | Capability.SET_MEMORY_REGION

Part = tuple[list[Change], list[Slot], list[Slot]]
"""Changes in order, the slots that they concern before, and those after."""


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def parts(changes: Sequence[Change], slots: dict[int, Slot]) -> list[Part]:
    """``changes`` taken apart by the frames that they concern, in the order of their first; ``slots`` by id, before.

    O(n log n). The changes of one slot belong together, whatever their frames.

    >>> low = Slot(as_id=0, id=1, base_gfn=0, npages=4, userspace_addr=0x10000)
    >>> changes = [Change(1), Change(2, 64, 1, 0x90000), Change(1, 0, 8, 0x10000)]
    >>> [[change.slot for change in part] for part, _, _ in parts(changes, {1: low})]
    [[1, 1], [2]]
    """
    now = dict(slots)
    spans: list[tuple[int, int, int, int]] = []  # 0 and frames, or a guest_memfd and its pages; place of the change
    for place, change in enumerate(changes):
        if (old := now.pop(change.slot, None)) is not None:
            spans += _spans(old, place)
        if not change.deletes:
            now[change.slot] = change.as_slot()
            spans += _spans(change.as_slot(), place)
    leader = list(range(len(changes)))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    spans.sort()
    space, reach, last = 0, -1, 0
    for where, start, end, place in spans:
        if where != space:
            space, reach = where, -1
        if start < reach:
            a, b = find(last), find(place)
            leader[max(a, b)] = min(a, b)
        if end > reach:
            reach, last = end, place
    first: dict[int, int] = {}
    for place, change in enumerate(changes):  # the changes of one slot belong together
        a, b = find(first.setdefault(change.slot, place)), find(place)
        leader[max(a, b)] = min(a, b)
    found: dict[int, list[Change]] = {}
    for place, change in enumerate(changes):
        found.setdefault(find(place), []).append(change)
    return [
        (
            part,
            [slots[name] for name in dict.fromkeys(change.slot for change in part) if name in slots],
            [now[name] for name in dict.fromkeys(change.slot for change in part) if name in now],
        )
        for _, part in sorted(found.items())
    ]


def _spans(slot: Slot, place: int) -> list[tuple[int, int, int, int]]:
    """Frames of a slot, and pages of the guest_memfd that it has: no two slots have the same of either."""
    found = [(0, slot.base_gfn, slot.end_gfn, place)]
    if slot.guest_memfd:
        first = slot.guest_memfd_offset >> PAGE_SHIFT
        found.append((slot.guest_memfd, first, first + slot.npages, place))
    return found


def _memory(slot: Slot, gfn: int) -> tuple[int, int, int, int]:
    """What is behind a frame: host address, guest_memfd and offset there, attributes."""
    offset = slot.guest_memfd_offset + ((gfn - slot.base_gfn) << PAGE_SHIFT) if slot.guest_memfd else 0
    return slot.hva(gfn), slot.guest_memfd, offset, slot.attributes


def keeps_memory(before: Sequence[Slot], after: Sequence[Slot]) -> bool:
    """Whether frames in both ``before`` and ``after`` keep their host memory, and there are some. O(n m).

    >>> whole = Slot(as_id=0, id=1, base_gfn=0, npages=8, userspace_addr=0x10000)
    >>> high = Slot(as_id=0, id=2, base_gfn=4, npages=4, userspace_addr=0x14000)
    >>> keeps_memory([whole], [whole._replace(npages=4), high])
    True
    >>> keeps_memory([whole], [whole._replace(userspace_addr=0x20000)])
    False
    """
    shared = False
    for old in before:
        for new in after:
            start, end = max(old.base_gfn, new.base_gfn), min(old.end_gfn, new.end_gfn)
            if start < end:
                if _memory(old, start) != _memory(new, start):
                    return False
                shared = True
    return shared


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes part by part; a part that is refused leaves those before it applied (BatchError)."""
    apply_with(engine, changes, keeps_memory)


def apply_with(
    engine: Engine, changes: Sequence[Change], is_primitive: Callable[[Sequence[Slot], Sequence[Slot]], bool]
) -> None:
    """As ``apply``; a part is one call if ``is_primitive`` says so of its slots before and after."""
    if not changes:
        return
    as_id = changes[0].as_id
    slots = {
        name: slot for name in {change.slot for change in changes} if (slot := engine.slot(name, as_id)) is not None
    }
    for part, before, after in parts(changes, slots):
        (atomic if is_primitive(before, after) else sequential).apply(engine, part)
