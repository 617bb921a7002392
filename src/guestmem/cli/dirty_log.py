"""``guestmem dirty-log``: ways of logging which pages a guest writes, side by side."""

from __future__ import annotations

from functools import partial

import click

from . import _completion
from ._interrupts import interruptible
from ._measure import check_json, designs_option, finish, json_option, size, vcpus_option
from ._progress import Progress

__all__ = ["command"]


@click.command("dirty-log", short_help="Which way of logging dirty pages is right, and what does it cost?")
@vcpus_option
@designs_option(_completion.ways, "way, or those with this half of a name")
@click.option("--repeat", metavar="N", type=click.IntRange(1), default=3, show_default=True, help="Runs a row.")
@click.option("--seed", metavar="S", type=int, default=1, show_default=True, help="Of the vCPUs' random accesses.")
@click.option(
    "--arch", type=click.Choice(["x86", "arm64"]), default="x86", show_default=True, help="Of the stage-2 tables."
)
@click.option("--memory", metavar="SIZE", callback=size, default="256M", show_default=True, help="Of the guest.")
@click.option(
    "--iterations",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=2,
    show_default=True,
    help="How often all is written and the log taken.",
)
@json_option
def command(
    *,
    vcpus: tuple[int, ...],
    designs: tuple[str, ...],
    repeat: int,
    seed: int,
    arch: str,
    memory: int,
    iterations: int,
    json_file: str | None,
) -> int:
    """Switch dirty logging on and off under vCPUs that write, in the shape of the kernel's dirty_log_perf_test.

    For each way and number of vCPUs: which pages were written and are in no log, and how long populating, switching on,
    writing, taking and clearing the log, and switching off took. Ways: switched on by demand or split, off by lazy,
    unmap, eager or bbm2, as in demand+lazy. A log that is taken without a flush runs too; a run that does not catch it
    shows nothing, says so, and exits with 3. Ctrl-C ends with what was measured so far.
    """
    check_json(json_file)
    from ..compare.dirty_log import check_dirty_log, compare_dirty_log, find_ways

    check_dirty_log(vcpus=vcpus, memory=memory, iterations=iterations, repeat=repeat)
    rows = len(vcpus) * len({way.name for way in find_ways(designs)} | {"unflushed"})
    done = 0

    def advanced(row: str) -> None:
        nonlocal done
        done += 1
        progress.at(row, done / (rows * repeat))

    with interruptible() as stopped, Progress() as progress:
        progress.say(f"{rows} rows of {repeat} runs; what is not yet compiled is compiled first")
        comparison = compare_dirty_log(
            vcpus=vcpus,
            memory=memory,
            iterations=iterations,
            repeat=repeat,
            designs=designs,
            seed=seed,
            arch=arch,
            stopped=stopped,
            advanced=advanced,
        )
    from ..report.dirty_log import print_dirty_log

    return finish(comparison, partial(print_dirty_log, comparison), json_file)
