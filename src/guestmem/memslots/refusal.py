"""Why a change was refused, in words: from the reason that a compiled phase returned, and the table of ``checks``."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..errors import MemslotError
from ..units import U64_MAX
from .changes import Change
from .checks import refusal_of
from .layout import DETAIL
from .phases import limits_of

if TYPE_CHECKING:
    from .set import Memslots

__all__ = ["refusal"]


def refusal(memslots: Memslots, reason: int, change: Change, ids: int) -> MemslotError:
    """The error for ``change``; ``ids`` is the limit its id was held to. ``reason`` 0: a field is no 64-bit word."""
    if reason == 0:
        field = next((f for f in change._fields if getattr(change, f) >> 64), "as_id")
        return MemslotError(
            errno.EINVAL, f"slot {change.slot}: {field} {getattr(change, field)} is not in 0..{U64_MAX:#x}"
        )
    record = int(memslots.desk[DETAIL])
    was = memslots.slot_of(record) if record else None
    return refusal_of(int(reason), change, was, limits_of(memslots.address_spaces, ids, memslots.ids))
