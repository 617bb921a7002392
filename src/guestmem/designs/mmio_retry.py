"""A fetch that fails in an update exits to the VMM, which runs it again when the update is over; data accesses do not.

The zero-length MMIO exit of 2022 (a failed fetch told as an exit that the VMM may ignore), and the ancestor of
``exit_retry``. The guest no longer dies; a read in a hole still gets what a device would say, and a write is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change
from . import sequential

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.SET_MEMORY_REGION | Capability.RETRY_EXITS | Capability.RETRY_FETCHES


def prepare(engine: Engine) -> None:
    """Have fetches that fail in an update wait for its end."""
    engine.retry_exits(True, fetches_only=True)


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes one after another while failed fetches wait; all or none: see ``sequential``."""
    with engine.exits_held():
        sequential.apply(engine, changes)
