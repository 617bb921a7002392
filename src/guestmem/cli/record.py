"""``guestmem record``: record a VMM with the tracer that is installed, and check the recording."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from ..traces.tracers import Run

__all__ = ["command"]

GRACE = 10.0
"""Seconds that a tracer has to write its last lines after it was told to stop."""


@click.command(
    "record",
    short_help="Record a VMM with the tracer that is installed, and check it.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@click.option("--pid", metavar="P", type=click.IntRange(1), help="A VMM that runs already; Ctrl-C ends the recording.")
@click.option(
    "--with",
    "tracer",
    type=click.Choice(["strace", "bpftrace", "trace-cmd"]),
    help="The tracer.  [default: the first of these that is installed]",
)
@click.option("-o", "--output", metavar="FILE", default="guestmem.trace", show_default=True, help="The recording.")
@click.option("--seconds", metavar="S", type=click.FloatRange(0, min_open=True), help="Stop after so long.")
@click.option("--check/--no-check", "checks", default=True, show_default=True, help="Check the recording afterwards.")
@click.option(
    "--form",
    type=click.Choice(["syscalls", "fentry", "kprobe"]),
    default="syscalls",
    show_default=True,
    help="What bpftrace's program hangs on.",
)
@click.option("--recipe", is_flag=True, help="Print bpftrace's program and the commands, and run nothing.")
@click.option("--fail-on", type=click.Choice(["hole", "open"]), help="As in check.")
@click.option("--json", "as_json", is_flag=True, help="As in check.")
@click.argument("vmm", nargs=-1, metavar="[-- COMMAND …]")
@click.pass_context
def command(
    context: click.Context,
    *,
    pid: int | None,
    tracer: str | None,
    output: str,
    seconds: float | None,
    checks: bool,
    form: str,
    recipe: bool,
    fail_on: Literal["hole", "open"] | None,
    as_json: bool,
    vmm: tuple[str, ...],
) -> int:
    """Record what a VMM does to its memslots and when its vCPUs run, then check the recording.

    Either --pid names a VMM that runs, or COMMAND starts one. strace is run if it is installed, else bpftrace, else
    trace-cmd, each with the options and the clock that check needs. strace does not decode
    KVM_SET_USER_MEMORY_REGION2, which QEMU 9 and later use on kernels with guest_memfd: take --with bpftrace there.
    trace-cmd sees no memslots: what it records goes with QEMU's own trace, as --run-state.

    Exit status: that of check; 2 if nothing could be recorded.
    """
    from ..traces.tracers import installed, plan

    if recipe:
        from ..traces.recipe import recipe as program

        sys.stdout.write(program(form, pid=pid, fentry_name=_fentry_name()))
        return 0
    if (pid is None) == (not vmm):
        raise UsageError("either --pid P or a COMMAND is needed" + (", not both" if vmm else ""))
    there = installed()
    if tracer is None:
        if not there:
            raise UsageError("neither strace, bpftrace nor trace-cmd is installed")
        tracer = there[0]
    elif tracer not in there:
        raise UsageError(f"{tracer} is not installed{f'; there is {there[0]}' if there else ''}")
    if pid is not None and not Path(f"/proc/{pid}").exists():
        raise UsageError(f"--pid {pid}: no such process")
    folder = Path(output).parent
    if not folder.is_dir():
        raise UsageError(f"--output {output}: no folder {folder}")
    with tempfile.TemporaryDirectory(prefix="guestmem-") as temporary:
        program_file = str(Path(temporary) / "guestmem.bt")
        run = plan(
            tracer,
            output,
            pid=pid,
            command=vmm,
            program_file=program_file,
            form=form,
            fentry_name=_fentry_name() if tracer == "bpftrace" else "kfunc",
        )
        Path(program_file).write_text(run.program)
        with suppress(FileNotFoundError):
            Path(output).unlink()
        _say(f"recording: {run}" + (" (Ctrl-C ends it)" if pid is not None else ""))
        status = _record(run, seconds)
        if run.report and Path(run.report[-1]).exists():
            _report(run, output)
    if not Path(output).exists() or not Path(output).stat().st_size:
        raise UsageError(f"{tracer} recorded nothing (its exit status is {status})")
    _say(f"recorded {output}: {Path(output).stat().st_size} bytes")
    if not run.changes:
        _say(f"no memslots are in it; beside QEMU's log: guestmem check QEMU.log --run-state {output}")
        return 0
    if not checks:
        return 0
    from .check import command as check

    result: int = context.invoke(check, trace=output, fail_on=fail_on, as_json=as_json)
    return result


def _record(run: Run, seconds: float | None) -> int:
    """Run the tracer until it ends, Ctrl-C ends it, or ``seconds`` are over; its exit status."""
    # A session of its own: a signal goes to the tracer and the VMM once, and not to us as well.
    process = subprocess.Popen(run.argv, start_new_session=True)  # noqa: S603 (the user's command, under a tracer)
    try:
        return process.wait(seconds)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        return _stop(process)
    finally:
        if process.poll() is None:
            _kill(process, signal.SIGKILL)
            process.wait()


def _stop(process: subprocess.Popen[bytes]) -> int:
    """End the tracer, and the VMM with it if the tracer started it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        _kill(process, number)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            return process.wait(GRACE)
    _kill(process, signal.SIGKILL)
    return process.wait()


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _report(run: Run, output: str) -> None:
    """Make text of trace-cmd's recording."""
    with Path(output).open("wb") as stream:
        done = subprocess.run(run.report, stdout=stream, check=False)  # noqa: S603 (trace-cmd report)
    if done.returncode:
        raise UsageError(f"{' '.join(run.report)} failed with status {done.returncode}")


def _fentry_name() -> str:
    """What the installed bpftrace calls fentry: ``kfunc`` to version 0.20."""
    try:
        done = subprocess.run(["bpftrace", "--version"], capture_output=True, text=True, check=False, timeout=10)  # noqa: S607 (from PATH)
        major, minor = (
            int(part) for part in done.stdout.strip().removeprefix("bpftrace").strip().removeprefix("v").split(".")[:2]
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "fentry"
    return "kfunc" if (major, minor) < (0, 21) else "fentry"


def _say(text: str) -> None:
    print(f"guestmem: {text}", file=sys.stderr, flush=True)
