"""Frames that get other host memory are shown it by overlays, each by itself, and no slot is touched; else sequential.

The planes' KVM_SET_PLANE_MEMORY_OVERLAY (VSM series, David Woodhouse, linux-kernel, about October 2026): one page of
user memory at one frame, at most 64 of them (KVM_CAP_PLANE_MEMORY_OVERLAYS), not over a guest_memfd. So a transaction
that re-hosts up to 64 frames, or none, and leaves all others as they are, has no hole; but each frame has an instant of
its own. Everything else is done as KVM does it today, and so are logged slots, since a write to an overlay is in no
slot's log. The slots that the transaction asks for are published behind the overlays, where no vCPU can tell: the next
one finds them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Action, Change, Effect
from . import sequential

__all__ = ["MOST", "NEEDS", "apply", "frames", "prepare"]

NEEDS = Capability.UPDATE | Capability.SET_MEMORY_REGION | Capability.ABOVE_SLOTS
MOST = 64
"""Overlays that there can be."""


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def frames(effects: Sequence[Effect]) -> list[tuple[int, int]] | None:
    """Frames that overlays can re-host, each with its new host address; None if they are not all that changes.

    >>> from guestmem.memslots import Slot
    >>> old, new = Slot(0, 1, 8, 4, 0x10000), Slot(0, 2, 9, 1, 0x90000)
    >>> [(gfn, hex(host)) for gfn, host in frames([Effect(9, 10, Action.STALL, old, new)])]
    [(9, '0x90000')]
    >>> frames([Effect(9, 10, Action.STALL, old, None)]) is None
    True
    """
    found: list[tuple[int, int]] = []
    for start, end, action, old, new in effects:
        if action is Action.KEEP:
            continue
        if action is not Action.STALL or old is None or new is None or old.flags or new.flags:
            return None
        if len(found) + end - start > MOST:
            return None
        found += ((gfn, new.hva(gfn)) for gfn in range(start, end))
    return found


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes by overlays, or one after another where these cannot; all or none (BatchError)."""
    if not changes:
        return
    with engine.update(changes[0].as_id) as update:
        update.stage_all(changes)
        shown = frames(update.net_effect())
        if shown is not None:
            for gfn, userspace_addr in shown:
                update.overlay(gfn, userspace_addr)
            update.publish()
            update.settle()
            return
    sequential.apply(engine, changes)
