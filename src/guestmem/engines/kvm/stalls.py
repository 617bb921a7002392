"""How long vCPUs were kept from running by updates: the histogram that the software engine has, in a vCPU's words."""

from __future__ import annotations

from ...clock import now
from ...compiled import Own, compiled, u64
from ..stalls import stall_bucket
from .layout import HISTOGRAM, STALL_BEGUN, STALL_TOTAL, STALL_WORST

__all__ = ["begin_stall", "end_stall"]


@compiled
def begin_stall(own: Own) -> None:
    """A wait begins, unless one is in progress."""
    if own[STALL_BEGUN] == 0:
        own[STALL_BEGUN] = now()


@compiled
def end_stall(own: Own) -> None:
    """The wait is over: count it."""
    if own[STALL_BEGUN] != 0:
        took = now() - own[STALL_BEGUN]
        own[HISTOGRAM + stall_bucket(took)] += u64(1)
        own[STALL_TOTAL] += took
        own[STALL_WORST] = max(own[STALL_WORST], took)
        own[STALL_BEGUN] = u64(0)
