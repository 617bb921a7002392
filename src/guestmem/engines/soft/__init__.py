"""The software engine: vCPU threads that touch real memory while it is updated beneath them."""

from __future__ import annotations

from .engine import FLUX_MAX, SoftEngine
from .update import SoftUpdate

__all__ = ["FLUX_MAX", "SoftEngine", "SoftUpdate"]
