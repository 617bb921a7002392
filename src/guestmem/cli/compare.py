"""``guestmem compare``: replay a recorded VMM under each design of updating memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from . import _completion
from ._interrupts import interruptible
from ._measure import check_json, designs_option, finish, json_option, vcpus_option
from ._progress import Progress, about

if TYPE_CHECKING:
    from ..compare import Workload

__all__ = ["command"]

SHORT_S = 60
"""Seconds that nobody needs advice for."""
PAGE_SIZES = {"auto": 0, "4K": 4 << 10, "16K": 16 << 10, "64K": 64 << 10}


@click.command("compare", short_help="Which way of updating memory is right, and what does it cost?")
@click.argument("trace", type=click.Path(allow_dash=True))
@vcpus_option
@designs_option()
@click.option(
    "--engine",
    metavar="NAME",
    default="soft",
    show_default=True,
    shell_complete=_completion.engines,
    help="soft, or kvm: real vCPUs on /dev/kvm.",
)
@click.option("--repeat", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="Replays a row.")
@click.option("--seed", metavar="S", type=int, default=1, show_default=True, help="Of the vCPUs' random accesses.")
@click.option(
    "--interval", metavar="MS", type=click.FloatRange(0), default=2.0, show_default=True, help="Between transactions."
)
@click.option(
    "--arch",
    type=click.Choice(["x86", "arm64"]),
    default="x86",
    show_default=True,
    help="Whether an access to an INVALID slot retries (x86) or exits (arm64).",
)
@click.option(
    "--slow-vcpu",
    metavar="MS",
    type=click.FloatRange(0),
    default=0.0,
    help="vCPU 0 stays that long in read-side sections.",
)
@click.option(
    "--pattern",
    type=click.Choice(["random", "sequential", "hot"]),
    default="random",
    show_default=True,
    help="How vCPUs choose addresses.",
)
@click.option(
    "--writes", metavar="SHARE", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Of all accesses."
)
@click.option(
    "--fetches", metavar="SHARE", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Of all accesses."
)
@click.option(
    "--gap", metavar="MS", type=float, help="Longest pause inside a transaction.  [default: 5; 100 under strace -k]"
)
@click.option("--vm", metavar="VM", help="The VM to replay, if there are several: the refusal names them.")
@click.option(
    "--assume-slots",
    metavar="FILE",
    type=click.Path(),
    help="Slots from before the trace began: info mtree -f, or JSON (docs/traces.md).",
)
@click.option(
    "--page-size",
    type=click.Choice(list(PAGE_SIZES)),
    default="auto",
    show_default=True,
    help="Of the recorded host; auto: 4K, or more if a slot is larger than that allows.",
)
@click.option(
    "--dirty-log", is_flag=True, help="All slots log dirty pages: is every write in a log that the caller was handed?"
)
@json_option
def command(
    *,
    trace: str,
    vcpus: tuple[int, ...],
    designs: tuple[str, ...],
    engine: str,
    repeat: int,
    seed: int,
    interval: float,
    arch: str,
    slow_vcpu: float,
    pattern: str,
    writes: float,
    fetches: float,
    gap: float | None,
    vm: str | None,
    assume_slots: str | None,
    page_size: str,
    dirty_log: bool,
    json_file: str | None,
) -> int:
    """Replay a recorded VMM's memory updates under each design, while vCPU threads keep touching all the memory.

    TRACE is what `guestmem check` reads. For each design and number of vCPUs: what vCPUs saw that they should not
    have, what the updates cost, how long vCPUs waited. A design that is broken on purpose runs too; a run that does
    not catch it shows nothing, says so, and exits with 3. Ctrl-C ends with what was measured so far.

    Designs: sequential, sequential_answered, pause, pause_if_overlap, exit_retry, mmio_retry, batch, user_exit,
    kick_all, replace_all, primitives, resize_notify, overlay, attributes, atomic; on the kernel (--engine kvm) those
    that need no new system call. There the design that has to be caught is sequential.
    """
    check_json(json_file)
    from .. import traces
    from ..designs import find

    for name in designs:
        find(name)
    if writes + fetches > 1:
        raise UsageError(f"--writes and --fetches: {writes:g} + {fetches:g} is more than all accesses")
    timeline = traces.read(trace, gap=None if gap is None else gap / 1e3, vm=vm, assume_slots=assume_slots)
    from ..compare import compare
    from ..engines import Access

    with interruptible() as stopped, Progress() as progress:
        comparison = compare(
            timeline,
            vcpus=vcpus,
            designs=tuple(dict.fromkeys(designs)),
            engine=engine,
            repeat=repeat,
            seed=seed,
            interval_ms=interval,
            arch=arch,
            slow_vcpu_ms=slow_vcpu,
            access=Access(pattern=pattern, writes=writes, fetches=fetches),
            page_size=PAGE_SIZES[page_size],
            dirty_log=dirty_log,
            stopped=stopped,
            begins=partial(_foretell, progress),
            stepped=progress.at,
        )
    from ..report.compare import print_comparison

    return finish(comparison, partial(print_comparison, comparison), json_file)


def _foretell(progress: Progress, work: Workload) -> None:
    """Say how long it will take: before anything is compiled, and more exactly once it is."""
    progress.expected = work.seconds
    if not work.measured:
        rows = work.designs * work.vcpus
        progress.say(
            f"{rows} rows of {work.repeat} replays of {work.transactions} transactions: {about(work.seconds)}, after "
            "compiling what is not yet compiled (up to minutes, once)"
        )
    elif work.seconds > SHORT_S:
        progress.say(
            f"measuring: {about(work.seconds)}; fewer --repeat, --vcpus, --design or a shorter --interval help"
        )
