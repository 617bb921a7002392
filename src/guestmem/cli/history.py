"""``guestmem history``: whether one instant explains what everybody saw."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["command"]


@click.command("history", short_help="Does one instant explain what everybody saw of an update?")
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print JSON (form: docs/history.md).")
def command(*, file: str, as_json: bool) -> int:
    """Judge a history: accesses as intervals of time, each of which saw an update done or not done.

    FILE has one JSON object a line (docs/history.md): {"start": 3, "end": 7, "saw": "old"}; "-" is standard input.

    Exit status: 0 if it passes, 1 if two accesses contradict each other, 3 if it could not be looked at (an update was
    not seen from both sides), 2 for input that cannot be read.
    """
    from ..history import Verdict, judge, read_json_lines

    if file == "-":
        accesses, updates = read_json_lines(sys.stdin, "-")
    else:
        with Path(file).open(encoding="utf-8", errors="replace") as lines:
            accesses, updates = read_json_lines(lines, file)
    found = judge(accesses, updates)
    if as_json:
        import json

        json.dump(found.as_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(f"{found.verdict.value}: {found.reason}\n")
        for each in found.witness:
            place = f" at {each.where}" if each.where else ""
            sys.stdout.write(f"  [{each.start}, {each.end}] {each.who or 'an access'}{place}\n")
        for number, instant in enumerate(found.instants, 1):
            sys.stdout.write(f"  update {number} can have been at {instant}\n")
    sys.stdout.flush()
    return {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.UNKNOWN: 3}[found.verdict]
