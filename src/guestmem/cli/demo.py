"""``guestmem demo``: scenes to watch."""

from __future__ import annotations

import sys

import click

from . import _completion
from ._interrupts import interruptible

__all__ = ["command"]


@click.group("demo", short_help="Watch the failure, and what prevents it.")
def command() -> None:
    """Scenes on the software engine, or on the real kernel."""


@command.command("bios-relocation", short_help="A slot is re-created beneath two vCPUs, by design.")
@click.option(
    "--engine",
    metavar="NAME",
    default="soft",
    show_default=True,
    shell_complete=_completion.engines,
    help="soft, or kvm: /dev/kvm.",
)
@click.option(
    "--updates", metavar="N", type=click.IntRange(1), default=2000, show_default=True, help="How many, for each design."
)
@click.option(
    "--design",
    "designs",
    metavar="NAME",
    shell_complete=_completion.designs,
    multiple=True,
    show_default="those below that the engine can do",
    help="Only this design (repeat for more).",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON instead.")
def bios_relocation(*, engine: str, updates: int, designs: tuple[str, ...], as_json: bool) -> int:
    """Delete and re-create a slot that one vCPU counts in and another runs code from.

    Prints, per design, what the guest saw, and the median time of an update. Ctrl-C ends with what happened so far.

    Designs: sequential, pause_if_overlap, exit_retry, and on the software engine atomic; --design takes all that
    `guestmem compare` has.
    """
    from ..demo import bios_relocation as play

    with interruptible() as stopped:
        scene = play(engine, updates=updates, designs=tuple(dict.fromkeys(designs)), stopped=stopped)
    if as_json:
        import json

        sys.stdout.write(json.dumps(scene.as_dict(), indent=2) + "\n")
    else:
        from ..report.demo import print_scene

        print_scene(scene)
    return 130 if scene.interrupted else 0
