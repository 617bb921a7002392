"""What travels together in calls about a table: one argument between compiled functions, where it costs nothing.

From Python it costs a microsecond, so what Python calls takes the same words one by one.
"""

from __future__ import annotations

from typing import NamedTuple

from ..compiled import Own, Words

__all__ = ["Table"]


class Table(NamedTuple):
    """A table, and who is at it: its shape, its pool's pages and what is known of each, its mmu, a walker's desk."""

    shape: Own
    pool: Words
    pages: Words
    mmu: Words
    desk: Own
