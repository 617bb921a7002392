"""SRCU and deferred free: how slots, tables and range nodes are read without locks and freed safely."""

from __future__ import annotations

from .srcu import Srcu, srcu_enter, srcu_exit, srcu_expired, srcu_start, srcu_synchronize, srcu_words

__all__ = ["Srcu", "srcu_enter", "srcu_exit", "srcu_expired", "srcu_start", "srcu_synchronize", "srcu_words"]
