"""The one clock of the software engine: CLOCK_MONOTONIC in nanoseconds, the same on every core.

Linux reads it in user space (vDSO) behind a barrier, so that it does not move before an earlier load.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .compiled import INTERPRETED

__all__ = ["now", "stopwatch"]

stopwatch = time.perf_counter_ns
"""What counts take their times with, from Python. Nothing is decided by it: where threads are explored it stands."""

if TYPE_CHECKING or INTERPRETED:

    def now() -> int:
        """Nanoseconds since an arbitrary start; about 20 ns a call in compiled code."""
        return time.monotonic_ns()

else:
    from ._intrinsics import now
