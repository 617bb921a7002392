"""What ``guestmem demo`` prints."""

from __future__ import annotations

import sys
from typing import TextIO

from ..demo import Scene
from ..units import format_ns

__all__ = ["print_scene"]


def print_scene(scene: Scene, *, stream: TextIO | None = None) -> None:
    """A table of the scene's rows to ``stream`` (standard output if None), and what it shows in a sentence a row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stream = sys.stdout if stream is None else stream
    stream.write(
        f"bios-relocation, engine {scene.engine}: a slot is deleted and re-created beneath two vCPUs; vCPU 0 counts "
        "in it, vCPU 1 runs code from it\n"
    )
    if scene.host:
        stream.write(f"host: {scene.host}\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("design", no_wrap=True)
    columns = ("updates", "update, median", "accesses inside", "MMIO exits", "increments lost", "vCPU 1 died", "first")
    for column in columns:
        table.add_column(column, justify="right")
    for row in scene.rows:
        table.add_row(
            row.design,
            str(row.updates),
            format_ns(row.update_median_ns),
            str(row.inside),
            str(row.holes),
            f"{row.lost} of {row.writes}",
            str(row.killed),
            f"update {row.first_kill}" if row.first_kill else "-",
        )
    Console(file=stream, width=None if stream.isatty() else 160).print(table)
    for row in scene.rows:
        if row.harmed:
            stream.write(f"  {row.design}: the guest saw the hole\n")
        elif not row.inside:
            stream.write(f"  {row.design}: no access fell inside an update, so its zeros show nothing\n")
        else:
            answered = f"; {row.answered} exits were answered" if row.answered else ""
            stream.write(f"  {row.design}: nothing lost, nobody died, over {row.updates} updates{answered}\n")
    if scene.interrupted:
        stream.write("interrupted: the last row holds what happened so far\n")
