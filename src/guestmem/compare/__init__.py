"""Compare: a recorded boot replayed under every design of updating memory, on vCPUs that really touch it."""

from __future__ import annotations

from .dirty_log_result import DirtyLogComparison, DirtyLogRow
from .result import ELSEWHERE, Comparison, Row, Spread
from .run import DEFAULT_INTERVAL_MS, DEFAULT_REPEAT, DEFAULT_VCPUS, Workload, compare

__all__ = [
    "DEFAULT_INTERVAL_MS",
    "DEFAULT_REPEAT",
    "DEFAULT_VCPUS",
    "ELSEWHERE",
    "Comparison",
    "DirtyLogComparison",
    "DirtyLogRow",
    "Row",
    "Spread",
    "Workload",
    "compare",
]
