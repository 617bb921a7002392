"""Check: where a timeline let guest memory vanish, and whether a vCPU could see it."""

from __future__ import annotations

from .holes import Hole, HoleRange
from .late import LateReturn
from .lint import Remark
from .lints import LINTS, Lint
from .primitives import AtomicSet, Primitive
from .report import Report, check
from .rules import NOT_SEEN, RULES, Rule, Verdict

__all__ = [
    "LINTS",
    "NOT_SEEN",
    "RULES",
    "AtomicSet",
    "Hole",
    "HoleRange",
    "LateReturn",
    "Lint",
    "Primitive",
    "Remark",
    "Report",
    "Rule",
    "Verdict",
    "check",
]
