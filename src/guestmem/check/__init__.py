"""Check: where a timeline let guest memory vanish, and whether a vCPU could see it."""

from __future__ import annotations

from .holes import Hole, HoleRange
from .primitives import AtomicSet, Primitive
from .report import Report, check
from .verdict import Verdict

__all__ = ["AtomicSet", "Hole", "HoleRange", "Primitive", "Report", "Verdict", "check"]
