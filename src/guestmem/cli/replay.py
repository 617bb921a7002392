"""``guestmem replay``: follow the schedule of a counterexample."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ..errors import UsageError
from ._columns import counted, say

__all__ = ["command"]


@click.command("replay", short_help="Follow the schedule of a counterexample that explore found.")
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--perfetto", metavar="OUT", type=click.Path(), help="Also write trace events, for ui.perfetto.dev.")
@click.option("--whole", is_flag=True, help="Tell every step, not only those that the finding depends on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the finding, and whether it is the same.")
def command(*, file: str, perfetto: str | None, whole: bool, as_json: bool) -> int:
    """Follow the schedule in FILE, which `guestmem explore --save` wrote, and tell what happens.

    Exit status: 1 if it shows a finding, 0 if it no longer does, 2 for a file that cannot be followed.
    """
    try:
        schedule = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except ValueError as error:
        raise UsageError(f"{file}: not JSON: {error}") from None
    if not isinstance(schedule, dict) or "model" not in schedule:
        raise UsageError(f"{file}: not a counterexample: it names no model")
    from ..explore.own import again, find
    from ..explore.search import replay

    source = str(schedule.get("source", ""))
    if source and not Path(source).is_file() and file != "-":
        source = str(Path(file).parent / Path(source).name)  # it was moved, with the model beside it
    model = find(str(schedule["model"]), source)
    if schedule.get("edits"):
        model = again(model.source, model.name, tuple((str(old), str(new)) for old, new in schedule["edits"]))
    shown = replay(schedule, model, whole=whole)
    if perfetto:
        Path(perfetto).write_text(json.dumps(shown.trace) + "\n")
    if as_json:
        finding = str(shown.finding) if shown.finding else None
        print(json.dumps({"finding": finding, "same": shown.same, "steps": shown.steps, "changed": shown.changed}))
    else:
        print(shown.story)
        print()
        if shown.changed:
            say(f"since it was found these files changed: {', '.join(shown.changed)}")
        if shown.finding is None:
            say(f"nothing is wrong after {counted(shown.steps, 'step')}")
        else:
            say(str(shown.finding) if shown.same else f"another finding than recorded: {shown.finding}")
    return int(shown.finding is not None)
