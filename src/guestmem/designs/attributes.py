"""Changes of permission are made above the slots, range by range, and no slot is touched; else sequential.

Attributes NR, NW, NX of guest frames (Nicolas Saenz Julienne, "Core Building Blocks for Hyper-V VSM", kvm, June 2024):
what the VSM load, which splits slots to make pages read-only, was steered to. A transaction that only takes or gives
the rights to read, to write and to fetch has no hole, whatever slots it asks for; but each range has an instant of its
own, rights that are given come last, and whatever else changes is done as KVM does it today. The slots that it asks for
are published behind the attributes, where no vCPU can tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import KVM_MEM_READONLY, KVM_MEMSLOT_NR, KVM_MEMSLOT_NX, Action, Change, Effect, Slot
from . import sequential

__all__ = ["MOST", "NEEDS", "NR", "NW", "NX", "apply", "denied", "prepare", "rights_denied"]

NEEDS = Capability.UPDATE | Capability.SET_MEMORY_REGION | Capability.ABOVE_SLOTS
MOST = 64
"""Ranges that the engine has room for at once; KVM's attributes have no such limit."""
NR, NW, NX = 1, 2, 4
"""No reads, no writes, no fetches: the attributes' bits."""
_BITS = {KVM_MEMSLOT_NR: NR, KVM_MEM_READONLY: NW, KVM_MEMSLOT_NX: NX}
_ALL = KVM_MEMSLOT_NR | KVM_MEM_READONLY | KVM_MEMSLOT_NX


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def rights_denied(slot: Slot) -> int:
    """What of NR, NW and NX a slot's flags say.

    >>> rights_denied(Slot(0, 1, 8, 4, 0x10000, flags=KVM_MEM_READONLY | KVM_MEMSLOT_NX)) == NW | NX
    True
    """
    return sum(bit for flag, bit in _BITS.items() if slot.flags & flag)


def denied(effects: Sequence[Effect]) -> list[tuple[int, int, int]] | None:
    """Ranges that lose rights, and which; None if something other than rights changes, or rights that have no form.

    >>> old = Slot(0, 1, 8, 4, 0x10000)
    >>> denied([Effect(8, 12, Action.WRITES, old, old._replace(flags=2))])
    [(8, 12, 2)]
    >>> denied([Effect(8, 12, Action.STALL, old, old._replace(flags=KVM_MEMSLOT_NX))])
    [(8, 12, 4)]
    >>> denied([Effect(8, 12, Action.WRITES, old, old._replace(flags=1))]) is None
    True
    """
    found: list[tuple[int, int, int]] = []
    for start, end, action, old, new in effects:
        if action is Action.KEEP:
            continue
        if old is None or new is None or _memory(old, start) != _memory(new, start):
            return None
        if (old.flags ^ new.flags) & ~_ALL:
            return None
        after = rights_denied(new)
        if after & NR and after != NR | NW | NX:  # memory that cannot be read, but written or fetched
            return None
        if after & ~rights_denied(old):
            found.append((start, end, after))
    return found if len(found) <= MOST else None


def _memory(slot: Slot, gfn: int) -> tuple[int, int, int, int]:
    """What is behind a frame, whatever rights there are."""
    return slot.hva(gfn), slot.guest_memfd, slot.guest_memfd and slot.guest_memfd_offset, slot.attributes


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes by attributes, or one after another where these cannot; all or none (BatchError)."""
    if not changes:
        return
    with engine.update(changes[0].as_id) as update:
        update.stage_all(changes)
        ranges = denied(update.net_effect())
        if ranges is not None:
            for start, end, rights in ranges:
                update.deny(start, end, rights)
            update.publish()
            update.settle()
            return
    sequential.apply(engine, changes)
