"""``guestmem map``: what memory looks like, and what changes between two moments."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..errors import UsageError

__all__ = ["command"]


@click.command("map", short_help="What does memory look like, and what does a change of it cost?")
@click.argument("files", nargs=-1, metavar="FILE...", type=click.Path(allow_dash=True))
@click.option("--diff", is_flag=True, help="Two FILEs: what changed, which updates that takes, what they cost.")
@click.option("--space", metavar="NAME", help="The address space; default: memory, or the first.")
@click.option("--all", "every", is_flag=True, help="All address spaces, one after the other.")
@click.option("--slots", "only_slots", is_flag=True, help="No tree and no flat view, only slots.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (form: docs/vmm.md).")
def command(
    *, files: tuple[str, ...], diff: bool, space: str | None, every: bool, only_slots: bool, as_json: bool
) -> int:
    """Draw a memory map: its tree of regions, the flat view, and the slots for it.

    FILE is `info mtree -D` or `info mtree -f` of QEMU 5 to 10, a trace of slots (QEMU's kvm_set_user_memory or
    strace), or a map in JSON (docs/vmm.md). FILE@N is a trace after its line N, or a JSON map after its step N (0:
    before all). A tree and a flat view of one moment, given together, complete each other.

    With --diff A B, both may be moments of one file: --diff boot.json@4 boot.json@5.
    """
    if not files:
        raise UsageError("FILE: none is given (guestmem map --help)")
    from ..report.map_diff import Diff
    from ..report.map_moment import Show
    from ..vmm.hosts import Hosts
    from ._moments import moment_of

    hosts = Hosts()
    shown: Any
    if diff:
        if len(files) != 2:
            raise UsageError(f"--diff: it takes two files, not {len(files)}")
        before, after = (moment_of([each], hosts) for each in files)
        shown = Diff(before, after, space)
    else:
        shown = Show(moment_of(files, hosts), space, every=every, only_slots=only_slots)
    if as_json:
        import json

        json.dump(shown.as_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.writelines(line.rstrip() + "\n" for line in shown.lines())
    sys.stdout.flush()
    return 0
