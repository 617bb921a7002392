"""The entries of a transaction, each by itself, and each beside the slot that it was meant for."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import BatchError, CapabilityError, MemslotError
from ..memslots import Change, Slot, SlotKey
from ..memslots.no_memory import no_memory_for

if TYPE_CHECKING:
    from .backends import Backend

__all__ = ["check_entries", "check_meant", "check_spaces"]


def check_entries(check: Callable[[Change], object], changes: Sequence[Change]) -> None:
    """Check each change of a batch by itself; BatchError names the first that is refused."""
    for entry, change in enumerate(changes):
        try:
            check(change)
        except MemoryError:
            raise no_memory_for(changes, entry, "its checks") from None
        except MemslotError as error:
            raise BatchError(error.errno or errno.EINVAL, str(error).partition(": ")[2], entry=entry) from None


def check_spaces(changes: Sequence[Change], design: str) -> None:
    """CapabilityError for changes of two address spaces, but for ``atomic``: with others each would have its own."""
    spaces = {change.as_id for change in changes}
    if len(spaces) > 1 and design != "atomic":
        raise CapabilityError(
            f"design {design}: it changes one address space in a transaction, not {len(spaces)}; atomic, on the "
            "software engine, changes both with one instant"
        )


def check_meant(backend: Backend, changes: Sequence[Change], meant: Sequence[Slot | None]) -> None:
    """BatchError for a change that was meant for a slot that is there, and it is not, or is another by now.

    A region says nothing of it: what was meant to move a slot that has gone would create one, on memory that went with
    it; what was meant to create one would move another; and what says "the same flags elsewhere" would take back what
    another thread has set meanwhile.
    """
    now: dict[SlotKey, Slot | None] = {}
    entry = -1
    try:
        for entry, (change, old) in enumerate(zip(changes, meant, strict=False)):
            _check_meant(backend, entry, change, old, now)
    except MemoryError:
        raise no_memory_for(changes, entry, "its checks") from None


def _check_meant(
    backend: Backend, entry: int, change: Change, old: Slot | None, now: dict[SlotKey, Slot | None]
) -> None:
    there = now[change.key] if change.key in now else backend.slot(change.slot, change.as_id)
    if there is not None and old is None:
        raise BatchError(errno.EEXIST, f"slot {change.slot}: it exists by now", entry=entry)
    if old is not None and there is None:
        raise BatchError(errno.ENOENT, f"slot {change.slot}: it does not exist any more", entry=entry)
    if old != there:
        raise BatchError(errno.EAGAIN, f"slot {change.slot}: it was changed meanwhile: {old!r}, {there!r}", entry=entry)
    now[change.key] = None if change.deletes else change.as_slot()
