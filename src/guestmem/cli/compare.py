"""``guestmem compare``: replay a recorded boot under each design of updating memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ._interrupts import interruptible

__all__ = ["command"]

WEAK = 3
"""Exit status of a run that did not catch the design that is broken on purpose."""


def _numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """A list of vCPU counts, such as 1,2,4."""
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2,4,8") from None
    for count in counts:
        if not 1 <= count <= 256:
            raise click.BadParameter(f"{count} vCPUs; 1 to 256 are allowed")
    return counts


@click.command("compare", short_help="Which way of updating memory is right, and what does it cost?")
@click.argument("trace", type=click.Path(allow_dash=True))
@click.option("--vcpus", metavar="N,…", default="1,2,4,8", show_default=True, callback=_numbers, help="vCPU counts.")
@click.option("--design", "designs", metavar="NAME", multiple=True, help="Only this design (repeat for more).")
@click.option(
    "--engine", metavar="NAME", default="soft", show_default=True, help="soft, or kvm: real vCPUs on /dev/kvm."
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
    "--gap", metavar="MS", type=float, default=5.0, show_default=True, help="Longest pause inside a transaction."
)
@click.option("--vm", metavar="FD", type=int, help="The VM to replay, if strace shows several.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Also write all figures as JSON (-: only that).",
)
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
    gap: float,
    vm: int | None,
    json_file: str | None,
) -> int:
    """Replay a recorded VMM's memory updates under each design, while vCPU threads keep touching all the memory.

    TRACE is what `guestmem check` reads. For each design and number of vCPUs: what vCPUs saw that they should not
    have, what the updates cost, how long vCPUs waited. A design that is broken on purpose runs too; a run that does
    not catch it shows nothing, says so, and exits with 3. Ctrl-C ends with what was measured so far.

    Designs: sequential, sequential_answered, pause, pause_if_overlap, exit_retry, batch, atomic; on the kernel
    (--engine kvm) those that need no new system call. There the design that has to be caught is sequential.
    """
    from .. import traces
    from ..designs import DESIGNS, find

    for name in designs:
        find(name)
    if writes + fetches > 1:
        raise UsageError(f"--writes and --fetches: {writes:g} + {fetches:g} is more than all accesses")
    if json_file not in {None, "-"} and not Path(str(json_file)).absolute().parent.is_dir():
        raise UsageError(f"--json {json_file}: there is no such folder")
    timeline = traces.read(trace, gap=gap / 1e3, vm=vm)
    from ..compare import compare
    from ..engines.soft import Access

    rows = len(vcpus) * (len(set(designs)) + 1 if designs else len(DESIGNS))
    with interruptible() as stopped, _progress(rows * repeat) as advanced:
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
            stopped=stopped,
            advanced=advanced,
        )
    if json_file:
        _write_json(json_file, comparison.as_dict())
    if json_file != "-":
        from ..report.compare import print_comparison

        print_comparison(comparison)
    sys.stdout.flush()
    if comparison.interrupted:
        return 130
    return 0 if comparison.strong_enough else WEAK


def _write_json(file: str, values: dict[str, Any]) -> None:
    import json

    text = json.dumps(values, indent=2) + "\n"
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], object]]:
    """A bar on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _row: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compiling", total=total)
        yield lambda row: bar.update(task, advance=1, description=row)
