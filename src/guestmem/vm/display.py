"""A memory map to look at: as text for ``repr``, as a table for notebooks (``_repr_html_``). Holes are shown, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..memslots import Slot
from ..notebook import html_table
from ..units import PAGE_SHIFT, format_size

if TYPE_CHECKING:
    from .memory import Memory

__all__ = ["as_html", "as_text"]

_SHOWN = 40
_HEADINGS = ("guest address", "size", "slot", "host address", "flags")


def _rows(memory: Memory) -> Iterator[tuple[str, ...]]:
    """Slots and the holes between them."""
    before: Slot | None = None
    for slot in memory:
        if before is not None and before.as_id == slot.as_id and before.end_gfn < slot.base_gfn:
            yield _row(before.end_gfn, slot.base_gfn, "-", "", "hole")
        flags = " ".join(name for name, has in (("read-only", slot.readonly), ("log", slot.logs_dirty_pages)) if has)
        name = f"{slot.as_id}:{slot.id}" if slot.as_id else str(slot.id)
        yield _row(slot.base_gfn, slot.end_gfn, name, f"{slot.userspace_addr:#x}", flags)
        before = slot


def _row(start_gfn: int, end_gfn: int, name: str, host: str, flags: str) -> tuple[str, ...]:
    start, end = start_gfn << PAGE_SHIFT, end_gfn << PAGE_SHIFT
    return f"[{start:#x}, {end:#x})", format_size(end - start), name, host, flags


def _shown(memory: Memory) -> tuple[list[tuple[str, ...]], int]:
    rows = list(_rows(memory))
    return rows[:_SHOWN], max(0, len(rows) - _SHOWN)


def as_text(memory: Memory) -> str:
    """Columns of text, at most 40 rows."""
    rows, rest = _shown(memory)
    if not rows:
        return "Memory: no slots"
    table = [_HEADINGS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines, f"… and {rest} more"] if rest else lines)


def as_html(memory: Memory) -> str:
    """A table, at most 40 rows."""
    rows, rest = _shown(memory)
    return html_table(_HEADINGS, rows, rest)
