"""Frames of a guest that are its own page tables, read by calls that can fail, and with a limit.

A guest may put anything into its tables: one frame at several levels, a table that names itself, millions of entries.
No more than ``MOST_TABLES`` are read at all. What the entries mean is the architecture's: ``x86/guest_tables.py``.
"""

from __future__ import annotations

import ctypes
import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import GuestmemError
from ...memslots import Slot
from ...units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["MOST_TABLES", "GuestFrames", "UnknownTables"]

MOST_TABLES = 1024
"""Tables above the last level that are read for one verdict: 1 TiB mapped in 4 KiB pages."""

_IOV_MAX = 1024


class UnknownTables(GuestmemError):  # noqa: N818 - no failure: what is not known
    """The guest's tables could not all be looked at; the message says why."""


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class GuestFrames:
    """The frames of a guest, by its slots, read with ``process_vm_readv``: where nothing is mapped, an error."""

    def __init__(self, slots: Sequence[Slot], most: int = MOST_TABLES) -> None:
        import numpy as np

        self._slots = sorted((slot for slot in slots if not slot.as_id), key=_base)
        columns = [(slot.base_gfn, slot.end_gfn, slot.userspace_addr) for slot in self._slots] or [(0, 0, 0)]
        self._bases, self._ends, self._addresses = np.array(columns, np.uint64).T
        self.left = most
        """Frames that may still be read."""
        libc: Any = ctypes.CDLL(None, use_errno=True)
        self._readv = libc.process_vm_readv
        self._readv.restype = ctypes.c_ssize_t

    def host(self, frame: int) -> int | None:
        """Host address of a frame; None if it is in no slot. O(log slots)."""
        place = bisect_right(self._slots, frame, key=_base) - 1
        if place >= 0 and frame < self._slots[place].end_gfn:
            return self._slots[place].hva(frame)
        return None

    def read(self, frames: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """The 512 words of each frame, those that are in no slot left out; UnknownTables past the limit, or EFAULT.

        A guest may name any number of frames in no slot: what they cost is a search in an array each.
        """
        import numpy as np

        named = np.asarray(frames, np.uint64)
        slots = np.maximum(np.searchsorted(self._bases, named, "right").astype(np.int64) - 1, 0)
        named, slots = (each[(named >= self._bases[slots]) & (named < self._ends[slots])] for each in (named, slots))
        addresses = self._addresses[slots] + ((named - self._bases[slots]) << np.uint64(PAGE_SHIFT))
        hosts = [*zip(named[: self.left + 1].tolist(), addresses[: self.left + 1].tolist(), strict=True)]
        self.left -= len(hosts)
        if self.left < 0:
            raise UnknownTables("the guest has more page tables than are looked at")
        words = np.empty((len(hosts), 512), np.uint64)
        for first in range(0, len(hosts), _IOV_MAX):
            part = hosts[first : first + _IOV_MAX]
            ours = (_Vector * 1)(_Vector(words.ctypes.data + first * PAGE_SIZE, len(part) * PAGE_SIZE))
            theirs = (_Vector * len(part))(*(_Vector(host, PAGE_SIZE) for _, host in part))
            got = self._readv(
                os.getpid(), ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(len(part)), ctypes.c_ulong(0)
            )
            if got != len(part) * PAGE_SIZE:
                frame = part[max(got, 0) // PAGE_SIZE][0]
                raise UnknownTables(f"the page table at {frame << PAGE_SHIFT:#x} cannot be read")
        return words


def _base(slot: Slot) -> int:
    return slot.base_gfn
