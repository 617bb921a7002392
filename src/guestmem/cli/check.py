"""``guestmem check``: find where a vCPU can see memory vanish."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["command"]

PROGRESS_BYTES = 16 << 20
"""Files below this are read before a progress bar would be seen."""


@click.command("check", short_help="Where can a vCPU of my VMM see memory vanish?")
@click.argument("trace", type=click.Path(allow_dash=True))
@click.option("--run-state", metavar="FILE", type=click.Path(allow_dash=True), help="When vCPUs were in the guest.")
@click.option(
    "--run-state-offset",
    metavar="SECONDS",
    type=float,
    default=0.0,
    help="Added to the times of --run-state, to bring them to the trace's clock.",
)
@click.option("--vcpus", metavar="N", type=int, help="How many vCPUs the VM has, if some may not be recorded.")
@click.option(
    "--fail-on",
    type=click.Choice(["hole", "open"]),
    help="Exit with 1 if a hole was open for certain (open), or may have been (hole).",
)
@click.option(
    "--gap", metavar="MS", type=float, help="Longest pause inside a transaction.  [default: 5; 100 under strace -k]"
)
@click.option("--vm", metavar="VM", help="The VM to check, if there are several: the refusal names them.")
@click.option(
    "--assume-slots",
    metavar="FILE",
    type=click.Path(),
    help="Slots from before the trace began: info mtree -f, or JSON (docs/traces.md).",
)
@click.option("--lint/--no-lint", "with_lint", default=True, help="Also say what else in the trace has hurt others.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (form: docs/traces.md).")
@click.option(
    "--html",
    "html_file",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Also write a page: memory over time, each transaction, holes, vCPUs (-: only that).",
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(0), default=100, show_default=True, help="Holes to show; 0: all."
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1),
    help="Processes at work on a large trace: 1, or 2.  [default: one for each core]",
)
def command(
    *,
    trace: str,
    run_state: str | None,
    run_state_offset: float,
    vcpus: int | None,
    fail_on: Literal["hole", "open"] | None,
    gap: float | None,
    vm: str | None,
    assume_slots: str | None,
    with_lint: bool,
    as_json: bool,
    html_file: str | None,
    limit: int,
    jobs: int | None,
) -> int:
    """Find every window in which guest memory was missing between two updates of a VMM's memslots.

    TRACE is a recording of the VMM: QEMU's kvm_set_user_memory events, or strace's ioctl lines; "-" is standard
    input. Whether a vCPU was in the guest meanwhile is known if the trace has KVM_RUN (strace -f -ttt -T), or from
    --run-state: kvm_entry, kvm_exit and kvm_userspace_exit as ftrace, trace-cmd or perf script print them, or strace.

    Exit status: 0; 1 with --fail-on, if found; 2 for input that cannot be read.
    """
    if html_file not in {None, "-"}:
        _refuse_place(str(html_file))
    if html_file == "-" and as_json:
        raise UsageError("--html -: standard output is taken by --json")
    from .. import traces
    from ..check import check

    with _progress(trace) as progress:
        timeline = traces.read(
            trace,
            gap=None if gap is None else gap / 1e3,
            vm=vm,
            assume_slots=assume_slots,
            run_state=run_state,
            run_state_offset=run_state_offset,
            vcpus=vcpus,
            progress=progress,
            jobs=jobs,
        )
    report = check(timeline, with_lint=with_lint, jobs=jobs)
    if html_file is not None:
        from ..report.page import page

        html = page(report, timeline)
        if html_file == "-":
            sys.stdout.write(html)
        else:
            Path(html_file).write_text(html, encoding="utf-8", errors="replace")
    if html_file == "-":
        pass
    elif as_json:
        import json

        json.dump(report.as_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        from ..report.check import print_report

        print_report(report, limit=limit)
    sys.stdout.flush()
    return int(fail_on is not None and report.fails(fail_on))


def _refuse_place(file: str) -> None:
    """UsageError, before anything is read, if ``file`` cannot be written."""
    if not Path(file).absolute().parent.is_dir():
        raise UsageError(f"--html {file}: there is no such folder")
    if Path(file).is_dir():
        raise UsageError(f"--html {file}: a folder; a file is allowed")


@contextmanager
def _progress(trace: str) -> Iterator[Callable[[int], object] | None]:
    """A bar on standard error for a large file, if that is a terminal."""
    path = Path(trace)
    if trace == "-" or not sys.stderr.isatty() or not path.is_file() or path.stat().st_size < PROGRESS_BYTES:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=path.stat().st_size)
        yield lambda done: bar.update(task, completed=done)
