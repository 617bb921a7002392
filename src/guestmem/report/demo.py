"""What ``guestmem demo`` prints."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO

from ..demo import Scene, SceneRow
from ..units import format_ns
from .design_tables import DesignTable, print_tables

__all__ = ["print_scene"]


@dataclass
class _Labelled:
    """A scene's row, for a table of designs: two vCPUs, none wrong on purpose."""

    design: str
    vcpus: int = 2
    broken: bool = False
    oversubscribed: bool = False
    caught: bool = False


def print_scene(scene: Scene, *, stream: TextIO | None = None) -> None:
    """A table of the scene's rows to ``stream`` (standard output if None), and what it shows in a sentence a row."""
    stream = sys.stdout if stream is None else stream
    stream.write(
        f"bios-relocation, engine {scene.engine}: a slot is deleted and re-created beneath two vCPUs; vCPU 0 counts "
        "in it, vCPU 1 runs code from it\n"
    )
    if scene.host:
        stream.write(f"host: {scene.host}\n")
    columns = ("updates", "update, median", "accesses inside", "MMIO exits", "increments lost", "vCPU 1 died", "first")
    cells = [
        [
            str(row.updates),
            format_ns(row.update_median_ns),
            str(row.inside),
            str(row.holes),
            f"{row.lost} of {row.writes}",
            str(row.killed),
            f"update {row.first_kill}" if row.first_kill else "-",
        ]
        for row in scene.rows
    ]
    print_tables(
        [DesignTable("", columns, [_Labelled(row.design) for row in scene.rows], cells, with_vcpus=False)], stream
    )
    stream.writelines(f"  {row.design}: {_what_happened(row)}\n" for row in scene.rows)
    if scene.interrupted:
        stream.write("interrupted: the last row holds what happened so far\n" if scene.rows else "interrupted\n")


def _what_happened(row: SceneRow) -> str:
    """One row in words."""
    answered = f"; {row.answered} exits were answered" if row.answered else ""
    if not row.harmed:
        if not row.inside:
            return "no access fell inside an update, so its zeros show nothing"
        return f"nothing lost, nobody died, over {row.updates} updates{answered}"
    seen = []
    if row.holes:
        seen.append(f"{row.holes} accesses met no memory and left the guest as MMIO")
    if row.lost:
        seen.append(f"{row.lost} increments were lost")
    if row.killed:
        first = f", first seen after update {row.first_kill}" if row.first_kill else ""
        how = "KVM_EXIT_INTERNAL_ERROR, suberror 1, or code that such a write had spoilt"
        seen.append(f"vCPU 1 died {row.killed} times ({how}{first})")
    return f"the guest saw the hole: {'; '.join(seen)}{answered}"
