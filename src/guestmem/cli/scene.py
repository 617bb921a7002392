"""``guestmem scene``: a made-up trace of a load that the debate about memory updates was about."""

from __future__ import annotations

import json
import sys

import click

__all__ = ["command"]


@click.command("scene", short_help="Make a trace of a load: virtio-mem, PAM, a BAR that moves, poison, VSM.")
@click.argument("name", required=False)
@click.option("--steps", metavar="N", type=click.IntRange(1, 1_000_000), help="Steps  [default: the scene's own]")
@click.option(
    "--seed", metavar="N", type=click.IntRange(0), default=1, show_default=True, help="Of the random numbers."
)
@click.option("--list", "list_", is_flag=True, help="List the scenes.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print JSON.")
def command(*, name: str | None, steps: int | None, seed: int, list_: bool, as_json: bool) -> int:
    """Print the trace of scene NAME, as QEMU would log it: nobody recorded it.

    Then check it, or compare designs on it: guestmem scene vsm --steps 200 >vsm.log; guestmem compare vsm.log
    """
    from ..traces.scenes import SCENES, scene_lines

    if list_:
        if as_json:
            sys.stdout.write(
                json.dumps([{"name": each.name, "steps": each.steps, "summary": each.summary} for each in SCENES])
                + "\n"
            )
        else:
            sys.stdout.writelines(f"{scene.name:<12}{scene.steps:>6} steps: {scene.summary}\n" for scene in SCENES)
        return 0
    if name is None:
        raise click.UsageError("Missing argument 'NAME'; --list shows them.")
    sys.stdout.writelines(f"{line}\n" for line in scene_lines(name, steps=steps or 0, seed=seed))
    sys.stdout.flush()
    return 0
