"""SRCU and deferred free: how slots, tables and range nodes are read without locks and freed safely."""

from __future__ import annotations

from .deferred import Deferred, defer, deferred_words, reclaim, reclaim_wait
from .srcu import (
    Srcu,
    srcu_enter,
    srcu_exit,
    srcu_expired,
    srcu_oldest,
    srcu_start,
    srcu_synchronize,
    srcu_wait,
    srcu_wait_for,
    srcu_words,
)

__all__ = [
    "Deferred",
    "Srcu",
    "defer",
    "deferred_words",
    "reclaim",
    "reclaim_wait",
    "srcu_enter",
    "srcu_exit",
    "srcu_expired",
    "srcu_oldest",
    "srcu_start",
    "srcu_synchronize",
    "srcu_wait",
    "srcu_wait_for",
    "srcu_words",
]
