"""A second process for half of a long work, where there is a second core: a copy of this one, which hands back bytes.

A copy is made by ``fork``, so that it has all that was read so far without a byte being sent. It is only made where
this process has one thread, since the copy has no other, and a lock that one of them holds would never be free there.
What comes back is the same whether there was a copy or not: ``tests/check/test_two_processes_say_what_one_says.py``,
``tests/traces/test_two_processes_read_what_one_reads.py``.
"""

from __future__ import annotations

import marshal
import os
import pickle
import struct
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Ahead", "SecondProcess", "cores"]

HEADER = struct.Struct("qQ")
PIPE = 1 << 20
"""Bytes that a copy may be ahead by."""


def cores(jobs: int | None = None) -> int:
    """How many processes may work at once, of ``jobs`` that are wanted (None: as many as there are cores).

    1 where no copy can be made.
    """
    if not hasattr(os, "fork") or threading.active_count() != 1:
        return 1
    if jobs is not None:
        return jobs
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SecondProcess:
    """A copy of this process that works out ``work()``, and ends.

    ``result`` waits for it; a copy that failed, or was killed, has None, and the caller does the work itself: an error
    is raised there, as if there had been no copy.
    """

    __slots__ = ("_pid", "_pipe")

    def __init__(self, work: Callable[[], Any]) -> None:
        reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(writing)
            self._pipe = os.fdopen(reading, "rb")
            return
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(work(), pipe, pickle.HIGHEST_PROTOCOL)
        finally:
            os._exit(0)  # nothing of what the caller would do at its end

    def result(self) -> Any:
        """What ``work`` returned, or None if it did not end well."""
        try:
            with self._pipe as pipe:
                return pickle.load(pipe)  # noqa: S301 (from ourselves)
        except (EOFError, pickle.UnpicklingError):
            return None
        finally:
            os.waitpid(self._pid, 0)


class Ahead:
    """A copy of this process that works on blocks of text before this one comes to them.

    It does ``work`` of all that ``blocks`` still has, but for one in ``share``, the first of them the next block, and
    is at most PIPE bytes ahead. ``blocks`` must not share a position with this process's (see ``lines.source_of``).
    """

    __slots__ = ("_count", "_pid", "_pipe", "_share")

    def __init__(self, blocks: Iterator[str], work: Callable[[str], Any], share: int) -> None:
        reading, writing = os.pipe()
        self._share, self._count = share, 0
        self._pid = os.fork()
        if self._pid:
            os.close(writing)
            self._pipe = os.fdopen(reading, "rb")
            return
        try:
            os.close(reading)
            _widen(writing)
            with os.fdopen(writing, "wb") as pipe:
                for i, block in enumerate(blocks):
                    if i % share:
                        made = marshal.dumps(work(block))
                        pipe.write(HEADER.pack(hash(block), len(made)))
                        pipe.write(made)
                        pipe.flush()
        finally:
            os._exit(0)  # nothing of what the caller would do at its end

    def of(self, block: str) -> Any:
        """What it made of the next block, which is this one; None if that is left to the caller."""
        self._count += 1
        if not (self._count - 1) % self._share or self._pipe.closed:
            return None
        header = self._pipe.read(HEADER.size)
        seen, size = HEADER.unpack(header) if len(header) == HEADER.size else (None, 0)
        made = self._pipe.read(size)
        if seen != hash(block) or len(made) != size:  # it died, or the file is not what it was
            self.close()
            return None
        return marshal.loads(made)  # noqa: S302 (from ourselves)

    def close(self) -> None:
        """No more is wanted of it: it ends at the next that it has."""
        if not self._pipe.closed:
            self._pipe.close()
            os.waitpid(self._pid, 0)


def _widen(pipe: int) -> None:
    """Let a pipe hold PIPE bytes, where that can be had."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    except (ImportError, AttributeError, OSError):
        return
