"""One instant for the whole batch, on all vCPUs; only those that touch what changes wait.

The batch runs in order on the inactive set; then old and new are compared range by range. Ranges that lose their
memory, or rights to it, are put in flux and zapped, and every vCPU in the guest acknowledges the flush; now no vCPU
can use an old translation, and one that faults there waits. One store publishes the new set: the instant. Then the
waiting vCPUs go on. Ranges whose host memory and rights stay, whatever slots they are in, cost nothing; if that is so
of all, nobody waits.

What needs no bookkeeping beside the slots goes by one compiled call (``Engine.at_once``); else the phases below make
room for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change

__all__ = ["NEEDS", "apply", "apply_with", "prepare"]

NEEDS = Capability.UPDATE


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply all changes or none (BatchError; E2BIG past the engine's limit): no vCPU sees anything in between.

    Changes of two address spaces have one instant, too.
    """
    apply_with(engine, changes, wait=True)


def apply_with(engine: Engine, changes: Sequence[Change], *, wait: bool) -> None:
    """As ``apply``; without ``wait``, old translations may be in use at the instant: ``atomic_unacknowledged``."""
    if not changes:
        return
    if engine.at_once(changes, wait=wait):
        return
    spaces = {change.as_id: None for change in changes}  # in order
    with engine.update(*spaces) as update:
        update.stage_all(changes)  # all that can fail is before the first stall
        update.stall(update.net_effect(), wait=wait)
        update.publish()
        update.release()
        update.settle()
