"""How long vCPUs had to wait: the histogram in a vCPU's own words."""

from __future__ import annotations

from ...compiled import U64, Own, compiled, const
from ..stalls import stall_bucket
from .layout import HISTOGRAM, STALL_TOTAL, STALL_WORST

__all__ = ["record_stall"]

_ONE = const(1)


@compiled
def record_stall(own: Own, nanoseconds: U64) -> None:
    """Count one wait."""
    bucket = stall_bucket(nanoseconds)
    own[HISTOGRAM + bucket] += _ONE
    own[STALL_TOTAL] += nanoseconds
    own[STALL_WORST] = max(own[STALL_WORST], nanoseconds)
