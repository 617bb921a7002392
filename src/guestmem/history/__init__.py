"""Histories: whether one instant explains what everybody saw of an update.

General: no engine, no dependency. Accesses are intervals of time, each saw the old or the new.
"""

from __future__ import annotations

from .access import Access, Update
from .json_lines import read_json_lines, write_json_lines
from .judge import Judgement, Verdict, judge
from .values import Reading, accesses_of

__all__ = [
    "Access",
    "Judgement",
    "Reading",
    "Update",
    "Verdict",
    "accesses_of",
    "judge",
    "read_json_lines",
    "write_json_lines",
]
