"""Check: where a timeline let guest memory vanish, and whether a vCPU could see it."""

from __future__ import annotations

from .holes import Hole, HoleRange
from .primitives import AtomicSet, Primitive
from .report import Report, check
from .rules import RULES, Rule, Verdict

__all__ = ["RULES", "AtomicSet", "Hole", "HoleRange", "Primitive", "Report", "Rule", "Verdict", "check"]
