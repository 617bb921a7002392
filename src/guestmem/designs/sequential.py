"""One call a change: KVM today.

DELETE and MOVE take two swaps each; between the delete of a range and its re-creation it is missing. Source:
``kvm_set_memory_region()``, Linux 6.18.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from ..engines import Capability, Engine
from ..errors import BatchError, GuestmemError, MemslotError
from ..memslots import Change, Slot
from ..memslots.no_memory import no_memory_for

__all__ = ["NEEDS", "apply", "apply_with", "prepare"]

NEEDS = Capability.SET_MEMORY_REGION


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes one after another, all or none: if one is refused, those before it are taken back.

    BatchError names the entry, also where memory cannot be had. vCPUs that run see what was done, and then that it is
    not. If taking back is refused as well, the changes up to there stay, and the error (MemslotError) says so.
    """
    apply_with(engine, changes)


def apply_with(engine: Engine, changes: Sequence[Change], done: Callable[[int], object] | None = None) -> None:
    """As ``apply``; ``done`` is called after each change, with its place."""
    before: list[Slot | None] = []
    try:
        for place, change in enumerate(changes):
            before.append(engine.slot(change.slot, change.as_id))
            engine.set_memory_region(change)
            if done is not None:
                done(place)
    except BaseException as error:
        _take_back(engine, changes, before, error)
        if isinstance(error, MemoryError):
            raise no_memory_for(changes, len(before) - 1) from None
        if not isinstance(error, GuestmemError) or isinstance(error, BatchError):
            raise
        why = str(error)
        if isinstance(error, MemslotError):
            why = why.partition(": ")[2]
        raise BatchError(error.errno or errno.EINVAL, why, entry=len(before) - 1) from None


def _take_back(engine: Engine, changes: Sequence[Change], before: Sequence[Slot | None], error: BaseException) -> None:
    """Undo the first ``len(before)`` changes, the last first: each slot is again what it was before its change."""
    for entry in reversed(range(len(before))):
        change, was = changes[entry], before[entry]
        now = engine.slot(change.slot, change.as_id)
        if now == was:
            continue
        undo = Change(change.slot, as_id=change.as_id)
        if was is not None:
            undo = Change.of(was)
        try:
            engine.set_memory_region(undo)
        except GuestmemError as again:
            what = f"{error}; and entry {entry} could not be taken back: {again}: entries 0 to {entry} stay"
            number = error.errno if isinstance(error, GuestmemError) else again.errno
            raise MemslotError(number or errno.EINVAL, what) from error
