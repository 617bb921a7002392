"""Designs: ways of applying a list of changes to the memory of running vCPUs."""

from __future__ import annotations

from .registry import BROKEN, DESIGNS, LOGS, Design, control, find

__all__ = ["BROKEN", "DESIGNS", "LOGS", "Design", "control", "find"]
