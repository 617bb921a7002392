"""Devices' maps beside a VM's slots, and how one is told of a change that has no instant of its own."""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..clock import stopwatch as _clock
from ..engines.listeners import Attached, MapListener, difference
from ..errors import MemslotError
from ..memslots import Effect
from ..units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from ..memslots import Memslots

__all__ = ["Attached", "MapListener", "VhostMap", "telling"]


@contextmanager
def telling(attached: Sequence[Attached], memslots: Memslots) -> Iterator[None]:
    """Around a change: who had no part in its instant is told afterwards. O(slots) if anybody listens, else nothing."""
    if not attached:
        yield
        return
    before, had = list(memslots), [each.instants for each in attached]
    begun = _clock()
    try:
        yield
    finally:
        effects = difference(before, memslots)
        for each, instants in zip(attached, had, strict=True):
            if effects and each.instants == instants:
                each.late(effects, begun)


class VhostMap(MapListener):
    """A table of guest memory as vhost has one (VHOST_SET_MEM_TABLE): of one address space, exchanged under a lock.

    >>> from guestmem.vm import Vm
    >>> with Vm() as vm:
    ...     _ = vm.memory.create(0, gpa=0, size=0x4000)
    ...     device = VhostMap()
    ...     told = vm.memory.listen(device)
    ...     with vm.memory.transaction() as change:
    ...         host = change.delete(0)
    ...         change.create(0, gpa=0x8000, size=0x4000, host=host)
    ...     with device.access(0x9000) as address:
    ...         address == host + 0x1000, told.instants, told.windows
    (True, 1, 0)
    """

    def __init__(self, as_id: int = 0) -> None:
        self.as_id = as_id
        self._lock = threading.Lock()
        self._frames: list[tuple[int, int, int]] = []
        """Of the table, by first frame: that, the end, host address."""

    def stall(self, effects: Sequence[Effect]) -> None:
        """Take the lock: no access is under way."""
        del effects
        self._lock.acquire()

    def commit(self, effects: Sequence[Effect]) -> None:
        """Exchange the table. O(entries)."""
        pieces = self._frames
        for start, end, _, old, new in effects:
            slot = new or old
            if slot is None or slot.as_id != self.as_id:
                continue
            kept = []
            for first, last, host in pieces:
                if last <= start or end <= first:
                    kept.append((first, last, host))
                    continue
                if first < start:
                    kept.append((first, start, host))
                if end < last:
                    kept.append((end, last, host + ((end - first) << PAGE_SHIFT)))
            if new is not None:
                kept.append((start, end, new.hva(start)))
            pieces = sorted(kept)
        self._frames = pieces

    def resume(self) -> None:
        """Give the lock back."""
        self._lock.release()

    @contextmanager
    def access(self, gpa: int) -> Iterator[int]:
        """Host address of a guest address, which stays so meanwhile; MemslotError (EFAULT) where there is no memory."""
        with self._lock:
            gfn = gpa >> PAGE_SHIFT
            place = bisect_right(self._frames, (gfn, 1 << 64, 0)) - 1
            if place < 0 or self._frames[place][1] <= gfn:
                raise MemslotError(errno.EFAULT, f"gpa: {gpa:#x} is not in the device's table")
            first, _, host = self._frames[place]
            yield host + ((gfn - first) << PAGE_SHIFT) + gpa % PAGE_SIZE

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """First frame, end and host address of each entry."""
        return iter(self._frames)
