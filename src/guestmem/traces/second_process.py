"""A second process for half of a long work, where there is a second core: a copy of this one, which hands back bytes.

A copy is made by ``fork``, so that it has all that was read so far without a byte being sent. It is only made where
this process has one thread, since the copy has no other, and a lock that one of them holds would never be free there.
What comes back is the same whether there was a copy or not: ``tests/check/test_two_processes_say_what_one_says.py``.
"""

from __future__ import annotations

import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SecondProcess", "cores"]


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
