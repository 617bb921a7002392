"""Replace all slots by a new list of them: what changes and what does not goes, and comes again.

The wholesale replacement that Sean Christopherson named among the alternatives (kvm list, September 2022). The caller
says what memory shall be, not what changes, so nothing is kept: every translation of the address space goes, every vCPU
that needs one waits for the instant, and each builds its part of the table again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Action, Change, Effect

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.UPDATE
_WHOLE = (1 << 52) - 1
"""Frames of the largest address space whose size in bytes is a word."""


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply all changes or none; whoever faults meanwhile waits."""
    if not changes:
        return
    with engine.update(changes[0].as_id) as update:
        update.stage_all(changes)
        update.stall([Effect(0, _WHOLE, Action.STALL, None, None)])
        update.publish()
        update.release()
        update.settle()
