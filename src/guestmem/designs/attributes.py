"""Changes of permission are made above the slots, range by range, and no slot is touched; else sequential.

Attributes NR, NW, NX of guest frames (Nicolas Saenz Julienne, "Core Building Blocks for Hyper-V VSM", kvm, June 2024):
what the VSM load, which splits slots to make pages read-only, was steered to. A transaction that only takes or gives
the right to write, or neither, has no hole, whatever slots it asks for; but each range has an instant of its own, and
whatever else changes is done as KVM does it today. The slots that it asks for are published behind the attributes,
where no vCPU can tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import KVM_MEM_READONLY, Action, Change, Effect
from . import sequential

__all__ = ["MOST", "NEEDS", "apply", "denied", "prepare"]

NEEDS = Capability.UPDATE | Capability.SET_MEMORY_REGION | Capability.ABOVE_SLOTS
MOST = 64
"""Ranges that the engine has room for at once; KVM's attributes have no such limit."""


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def denied(effects: Sequence[Effect]) -> list[tuple[int, int]] | None:
    """Ranges that lose the right to write; None if something other than that right changes.

    >>> from guestmem.memslots import Slot
    >>> old = Slot(0, 1, 8, 4, 0x10000)
    >>> denied([Effect(8, 12, Action.WRITES, old, old._replace(flags=2))])
    [(8, 12)]
    >>> denied([Effect(8, 12, Action.WRITES, old, old._replace(flags=1))]) is None
    True
    """
    found: list[tuple[int, int]] = []
    for start, end, action, old, new in effects:
        if action is Action.KEEP:
            continue
        if old is None or new is None or action in {Action.STALL, Action.FILL}:
            return None
        if old.flags ^ new.flags != KVM_MEM_READONLY:
            return None
        if action is Action.WRITES:
            found.append((start, end))
    return found if len(found) <= MOST else None


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes by attributes, or one after another where these cannot; all or none (BatchError)."""
    if not changes:
        return
    with engine.update(changes[0].as_id) as update:
        update.stage_all(changes)
        ranges = denied(update.net_effect())
        if ranges is not None:
            for start, end in ranges:
                update.deny_writes(start, end)
            update.publish()
            update.settle()
            return
    sequential.apply(engine, changes)
