"""Tables of designs by number of vCPUs, wide or narrow: what the tables of every comparison look like.

No value is ever cut: a table that does not fit into the terminal becomes lines of "name value", broken between pairs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DesignTable", "bad", "print_tables", "terminal_width", "verdict"]

UNBOUNDED = 1 << 16
"""Columns that no table needs, to measure what it does need."""


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


@dataclass(frozen=True, slots=True)
class DesignTable:
    """A title, the names of the columns, and for each row its cells (with rich's markup)."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[DesignRow]
    cells: Sequence[Sequence[str]]
    with_vcpus: bool = True
    """Whether the number of vCPUs is told: not where it is the same in all rows, and said above."""


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


def terminal_width(stream: TextIO) -> int | None:
    """Columns of the terminal that shows ``stream``; None if none does."""
    return (os.get_terminal_size(stream.fileno()).columns or 80) if stream.isatty() else None


def print_tables(tables: Sequence[DesignTable], stream: TextIO) -> None:
    """Print tables to ``stream``: as tables where they fit or no terminal shows them, else narrow. Empty ones are not.

    All are narrow if one has to be.
    """
    from rich.console import Console

    shown = [table for table in tables if table.rows]
    wide = [_table(table) for table in shown]
    columns = terminal_width(stream)
    probe = Console(file=io.StringIO(), width=UNBOUNDED)
    needed = [probe.measure(table).maximum for table in wide]
    if columns is None:
        for table, width in zip(wide, needed, strict=True):
            text = io.StringIO()
            Console(file=text, width=width, color_system=None).print(table)
            stream.write("\n")
            stream.writelines(line.rstrip() + "\n" for line in text.getvalue().splitlines())
    elif max(needed, default=0) <= columns:
        console = Console(file=stream, width=columns)
        for table in wide:
            console.print()
            console.print(table)
    else:
        for design_table in shown:
            _print_narrow(design_table, stream, columns)


def _table(table: DesignTable) -> Table:
    """As a table: the design's name only in the first of its lines."""
    from rich import box
    from rich.table import Table

    made = Table(title=table.title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    made.add_column("design", no_wrap=True)
    for column in ("vCPUs", *table.columns) if table.with_vcpus else table.columns:
        made.add_column(column, justify="right", no_wrap=True)
    last = ""
    for row, mine in zip(table.rows, table.cells, strict=True):
        name = row.design if row.design != last else ""
        if name and last:
            made.add_section()
        last = row.design
        shown = f"[dim]{name} (broken)[/]" if name and row.broken else name
        made.add_row(shown, *([f"{row.vcpus}{'*' * row.oversubscribed}"] if table.with_vcpus else []), *mine)
    return made


def _print_narrow(table: DesignTable, stream: TextIO, columns: int) -> None:
    """As lines of "name value", one design and number of vCPUs after the other."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, width=UNBOUNDED, force_terminal=True)
    console.print(Text(f"\n{table.title}".rstrip("\n"), style="italic"))
    for row, mine in zip(table.rows, table.cells, strict=True):
        name = f"{row.design}{' (broken)' * row.broken}"
        if table.with_vcpus:
            name += f", {row.vcpus}{'*' * row.oversubscribed} vCPU{'s' * (row.vcpus != 1)}"
        console.print(Text(name))
        line = Text("  ")
        for i, (name, value) in enumerate(zip(table.columns, mine, strict=True)):
            pair = Text.assemble(f"{name} ", Text.from_markup(value), "," if i + 1 < len(mine) else "")
            if len(line) > 2 and len(line) + len(pair) > columns:
                line.rstrip()
                console.print(line, soft_wrap=True)
                line = Text("  ")
            line.append_text(pair).append(" ")
        line.rstrip()
        console.print(line, soft_wrap=True)
