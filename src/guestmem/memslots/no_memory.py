"""The errors of a batch for which memory cannot be had: of the entry that asked for it, or of the batch as a whole.

Source of the errno: ``kvm_set_memory_region()``, Linux 6.18, steps 18, 20 and 21 of docs/abi.md.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ..errors import BatchError, MemslotError
from .changes import Change

__all__ = ["no_memory_for", "no_memory_for_all"]


def no_memory_for(changes: Sequence[Change], entry: int, what: str = "it") -> MemslotError:
    """ENOMEM, found while entry ``entry`` of ``changes`` was looked at; before the first (-1), it is nobody's. O(1).

    >>> no_memory_for([Change(3), Change(4, 0, 16)], 1, "its dirty bitmap")
    BatchError('ENOMEM: entry 1: slot 4: no memory for its dirty bitmap')
    """
    if not 0 <= entry < len(changes):
        return no_memory_for_all()
    return BatchError(errno.ENOMEM, f"slot {changes[entry].slot}: no memory for {what}", entry=entry)


def no_memory_for_all() -> MemslotError:
    """ENOMEM for what the whole batch takes, whichever entries it has. No slot is changed.

    >>> no_memory_for_all()
    MemslotError('ENOMEM: batch: no memory for what all of it takes; no entry is to blame, no slot is changed')
    """
    return MemslotError(
        errno.ENOMEM, "batch: no memory for what all of it takes; no entry is to blame, no slot is changed"
    )
