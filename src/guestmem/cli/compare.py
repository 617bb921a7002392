"""``guestmem compare``: replay a recorded boot under each design of updating memory."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import UsageError
from . import _completion
from ._interrupts import interruptible
from ._progress import Progress, about

if TYPE_CHECKING:
    from ..compare import Workload

__all__ = ["command"]

WEAK = 3
"""Exit status of a run that did not catch the design that is broken on purpose."""

SHORT_S = 60
"""Seconds that nobody needs advice for."""
PAGE_SIZES = {"auto": 0, "4K": 4 << 10, "16K": 16 << 10, "64K": 64 << 10}

_OF_TRACES = ("trace", "engine", "interval", "slow_vcpu", "pattern", "writes", "fetches", "gap", "vm", "page_size")
_OF_SCENARIOS = ("memory", "iterations")


def _numbers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Lists of vCPU counts, such as 1,2,4; each count once."""
    value = ",".join(values)
    try:
        counts = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2,4,8") from None
    for count in counts:
        if not 1 <= count <= 256:
            raise click.BadParameter(f"{count} vCPUs; 1 to 256 are allowed")
    return counts


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """A size such as 64M or 1G, in bytes."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,12})([KMG]?)(i?B)?", value, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a size such as 64M or 1G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


@click.command("compare", short_help="Which way of updating memory is right, and what does it cost?")
@click.argument("trace", type=click.Path(allow_dash=True), required=False)
@click.option("--scenario", type=click.Choice(["dirty-log"]), help="Compare ways of dirty logging; takes no TRACE.")
@click.option(
    "--vcpus",
    metavar="N,…",
    multiple=True,
    default=("1,2,4,8",),
    show_default="1,2,4,8",
    callback=_numbers,
    help="vCPU counts (repeat for more).",
)
@click.option(
    "--design",
    "designs",
    metavar="NAME",
    multiple=True,
    shell_complete=_completion.designs,
    help="Only this design (repeat for more).",
)
@click.option(
    "--engine",
    metavar="NAME",
    default="soft",
    show_default=True,
    shell_complete=_completion.engines,
    help="soft, or kvm: real vCPUs on /dev/kvm.",
)
@click.option(
    "--repeat",
    metavar="N",
    type=click.IntRange(1),
    show_default="20; dirty-log: 3",
    help="Replays, or runs of the scenario, a row.",
)
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
    "--page-size",
    type=click.Choice(list(PAGE_SIZES)),
    default="auto",
    show_default=True,
    help="Of the recorded host; auto: 4K, or more if a slot is larger than that allows.",
)
@click.option("--memory", metavar="SIZE", callback=_size, show_default="256M", help="dirty-log: of the guest.")
@click.option(
    "--iterations",
    metavar="N",
    type=click.IntRange(1, 1000),
    show_default="2",
    help="dirty-log: how often all is written and the log taken.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Also write all figures as JSON (-: only that).",
)
@click.pass_context
def command(
    context: click.Context,
    *,
    trace: str | None,
    scenario: str | None,
    vcpus: tuple[int, ...],
    designs: tuple[str, ...],
    engine: str,
    repeat: int | None,
    seed: int,
    interval: float,
    arch: str,
    slow_vcpu: float,
    pattern: str,
    writes: float,
    fetches: float,
    gap: float | None,
    vm: str | None,
    page_size: str,
    memory: int | None,
    iterations: int | None,
    json_file: str | None,
) -> int:
    """Replay a recorded VMM's memory updates under each design, while vCPU threads keep touching all the memory.

    TRACE is what `guestmem check` reads. For each design and number of vCPUs: what vCPUs saw that they should not
    have, what the updates cost, how long vCPUs waited. A design that is broken on purpose runs too; a run that does
    not catch it shows nothing, says so, and exits with 3. Ctrl-C ends with what was measured so far.

    Designs: sequential, sequential_answered, pause, pause_if_overlap, exit_retry, batch, atomic; on the kernel
    (--engine kvm) those that need no new system call. There the design that has to be caught is sequential.

    With --scenario dirty-log: ways of switching dirty logging on (demand, split) and off (lazy, unmap, eager, bbm2), as
    in demand+lazy; --design also takes half a name. A log that is taken without a flush runs too, and must be caught.
    """
    if json_file not in {None, "-"} and not Path(str(json_file)).absolute().parent.is_dir():
        raise UsageError(f"--json {json_file}: there is no such folder")
    if json_file and Path(json_file).is_dir():
        raise UsageError(f"--json {json_file}: a folder; a file is allowed")
    if scenario:
        _refuse(context, _OF_TRACES, f"is for a TRACE, not for --scenario {scenario}")
        return _compare_dirty_log(vcpus, designs, repeat or 3, seed, arch, memory, iterations or 2, json_file)
    _refuse(context, _OF_SCENARIOS, "is for --scenario dirty-log")
    if trace is None:
        raise click.MissingParameter(ctx=context, param_hint="'TRACE'", param_type="argument")
    repeat = repeat or 20
    from .. import traces
    from ..designs import find

    for name in designs:
        find(name)
    if writes + fetches > 1:
        raise UsageError(f"--writes and --fetches: {writes:g} + {fetches:g} is more than all accesses")
    timeline = traces.read(trace, gap=None if gap is None else gap / 1e3, vm=vm)
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
            stopped=stopped,
            begins=partial(_foretell, progress),
            stepped=progress.at,
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


def _refuse(context: click.Context, names: tuple[str, ...], why: str) -> None:
    """UsageError if one of these was given: silently ignored, it would look as if it had been measured."""
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and context.params[name] is not None:
            if name == "trace":
                raise UsageError(f"{context.params[name]}: --scenario {context.params['scenario']} takes no TRACE")
            raise UsageError(f"--{name.replace('_', '-')}: {context.params[name]!r} {why}")


def _compare_dirty_log(
    vcpus: tuple[int, ...],
    designs: tuple[str, ...],
    repeat: int,
    seed: int,
    arch: str,
    memory: int | None,
    iterations: int,
    json_file: str | None,
) -> int:
    """Run the scenario dirty-log, print it, and return the exit status."""
    from ..compare.dirty_log import DEFAULT_MEMORY, check_dirty_log, compare_dirty_log, find_ways

    memory = DEFAULT_MEMORY if memory is None else memory
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
    if json_file:
        _write_json(json_file, comparison.as_dict())
    if json_file != "-":
        from ..report.dirty_log import print_dirty_log

        print_dirty_log(comparison)
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
