"""Tables of designs by number of vCPUs: what the tables of every comparison look like, and the line that judges it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["PIPE_WIDTH", "add_rows", "bad", "design_table", "verdict"]

PIPE_WIDTH = 240
"""Columns of a table that no terminal shows: wide enough that no row wraps."""


class DesignRow(Protocol):
    """One design at one number of vCPUs."""

    design: str
    vcpus: int
    broken: bool

    @property
    def oversubscribed(self) -> bool:
        """Whether there are more vCPUs than cores."""

    @property
    def caught(self) -> bool:
        """Whether this row shows its design to be broken."""


class Judged(Protocol):
    """A comparison with a design that has to be caught."""

    interrupted: bool

    @property
    def broken_rows(self) -> Sequence[DesignRow]:
        """Rows of that design."""

    @property
    def strong_enough(self) -> bool:
        """Whether it was caught."""


def verdict(comparison: Judged) -> str:
    """One line: whether the run was strong enough to be believed, and at which numbers of vCPUs.

    A run that was interrupted before the broken design had its turn says so.
    """
    broken = comparison.broken_rows
    name = broken[0].design if broken else "the broken design"
    if comparison.strong_enough:
        text = f"load: strong enough ({name} was caught at {_vcpus(row for row in broken if row.caught)})"
        if missed := [row for row in broken if not row.caught]:
            text += f"; not at {_vcpus(missed)}: zeros there mean little"
        return text
    if comparison.interrupted:
        return f"load: not shown to be strong enough (interrupted before {name} was caught); zeros above mean nothing"
    return f"load: TOO WEAK ({name} was not caught); zeros above mean nothing: use more --repeat or more --vcpus"


def _vcpus(rows: Iterable[DesignRow]) -> str:
    counts = sorted({row.vcpus for row in rows})
    return f"{', '.join(map(str, counts))} vCPU{'s' * (counts != [1])}"


def bad(count: int) -> str:
    """A count that should be 0, as a cell."""
    return f"[bold red]{count}[/]" if count else "0"


def design_table(title: str, *columns: str) -> Table:
    """An empty table: design, then ``columns``."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("design", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def add_rows(table: Table, rows: Sequence[DesignRow], cells: Sequence[list[str]]) -> None:
    """Add a line a row, the design's name only in the first of its lines, then its vCPUs."""
    last = ""
    for row, mine in zip(rows, cells, strict=True):
        name = row.design if row.design != last else ""
        if name and last:
            table.add_section()
        last = row.design
        shown = f"[dim]{name} (broken)[/]" if name and row.broken else name
        table.add_row(shown, f"{row.vcpus}{'*' if row.oversubscribed else ''}", *mine)
