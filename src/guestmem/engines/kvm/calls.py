"""Calls that are under way on a VM's files: a number is given back to the system when no call is at it.

Files are numbers here. If one is closed while another thread is on its way to the kernel with it, it can be another
VM's by the time the kernel looks. So each call enters first, and who closes waits for those that have. Calls go side by
side, KVM_RUN is none of them: a vCPU is claimed by who runs it (``layout.TID``).
"""

from __future__ import annotations

import errno
import time
from _thread import get_ident

from ...errors import MemslotError
from ...interrupts import held

__all__ = ["Calls"]

_AGAIN_S = 0.0005


class Calls:
    """``with calls:`` the files stay open; MemslotError (EBADF) once they are to be closed. It nests.

    Signals are held off meanwhile. Who enters is counted before it looks whether this is the end, and who ends it says
    so before it counts; Python's own lock orders both.

    >>> calls = Calls()
    >>> with calls, calls:
    ...     pass
    >>> calls.end()
    >>> with calls:
    ...     pass
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EBADF: vm: it is closed
    """

    __slots__ = ("_inside", "is_over")

    def __init__(self) -> None:
        self._inside: dict[int, int] = {}
        """By thread, how often; a thread changes its own entry only."""
        self.is_over = False
        """Whether calls are EBADF."""

    def __enter__(self) -> None:
        held.__enter__()
        me = get_ident()
        before = self._inside.get(me, 0)
        self._inside[me] = before + 1
        if self.is_over and not before:
            self.__exit__()
            raise MemslotError(errno.EBADF, "vm: it is closed")

    def __exit__(self, *_exception: object) -> None:
        me = get_ident()
        left = self._inside.pop(me) - 1
        if left:
            self._inside[me] = left
        held.__exit__()

    def end(self) -> None:
        """No call begins from now on. MemslotError (EBUSY) from within one, by an object's ``__del__``."""
        if get_ident() in self._inside:
            raise MemslotError(errno.EBUSY, "vm: this thread is at a call of it (was that an object's __del__?)")
        self.is_over = True

    def wait(self) -> None:
        """After the end: until no call is under way."""
        while self._inside:
            time.sleep(_AGAIN_S)
