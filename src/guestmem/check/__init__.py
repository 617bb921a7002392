"""Check: where a timeline let guest memory vanish, and whether a vCPU could see it."""

from __future__ import annotations

from .holes import Hole, HoleRange
from .late import LateReturn
from .primitives import AtomicSet, Primitive
from .report import Report, check
from .rules import NOT_SEEN, RULES, Rule, Verdict

__all__ = [
    "NOT_SEEN",
    "RULES",
    "AtomicSet",
    "Hole",
    "HoleRange",
    "LateReturn",
    "Primitive",
    "Report",
    "Rule",
    "Verdict",
    "check",
]
