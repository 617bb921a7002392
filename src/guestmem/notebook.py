"""Tables for notebooks (``_repr_html_``): everything in them is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SHOWN", "html_table"]

SHOWN = 40
"""Rows of a table that a notebook shows."""


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], more: int = 0, *, caption: str = "") -> str:
    """A table of text; ``more`` rows are not in it, which is said below.

    >>> html_table(["a"], [["<b>"]], caption="c")
    '<table><caption>c</caption><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    rest = f"<p>… and {more} more</p>" if more > 0 else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
