"""``guestmem conform``: whether this kernel behaves as KVM documents."""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ._interrupts import interruptible

if TYPE_CHECKING:
    from ..conform.gmem_files import FileOutcome
    from ..conform.run import Divergence, Outcome

__all__ = ["command"]

_INTERRUPTED = 130
_FILE_STEPS = 5000


@click.command("conform", short_help="Does this kernel behave as KVM documents?")
@click.argument("device", default="/dev/kvm", type=click.Path())
@click.option(
    "--steps", metavar="N", type=click.IntRange(1), default=100_000, show_default=True, help="Calls to compare."
)
@click.option(
    "--minutes",
    metavar="M",
    type=click.FloatRange(0, 60 * 24 * 365, min_open=True),
    callback=lambda _context, _option, value: _number(value),
    help="Go on for so long, instead.",
)
@click.option("--seed", metavar="S", type=int, default=1, show_default=True, help="Decides which calls.")
@click.option(
    "--emit", type=click.Choice(["c", "python"]), default="python", show_default=True, help="Form of a divergence."
)
@click.option("--record", metavar="LOG", type=click.Path(), help="Write calls and the kernel's answers to LOG.")
@click.option("--against", metavar="LOG", type=click.Path(exists=True), help="Compare this kernel with a recorded one.")
@click.option("--list", "as_list", is_flag=True, help="The promises that are checked, with their sources.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (form: docs/conform.md).")
def command(
    *,
    device: str,
    steps: int,
    minutes: float | None,
    seed: int,
    emit: Literal["c", "python"],
    record: str | None,
    against: str | None,
    as_list: bool,
    as_json: bool,
) -> int:
    """Send random memory ioctls, valid and invalid, to DEVICE and to the model; every answer must agree.

    DEVICE is /dev/kvm unless given. A divergence is shrunk to the shortest sequence and printed as a program that shows
    it (to stdout; what it is, in words, at its head). Known differences between kernel versions are named, and are no
    divergence.

    Exit status: 0 if all agreed; 1 at a divergence; 2 without a usable kernel, or for bad input; 130 after Ctrl-C.
    """
    if as_list:
        return _list(as_json=as_json)
    if against is not None and record is not None:
        raise click.UsageError("--record and --against exclude each other")
    if against is not None and minutes is not None:
        raise click.UsageError("--minutes and --against exclude each other: a log has its own calls")
    import platform
    from functools import partial

    from ..conform.against import conform_against
    from ..conform.draw import drawn
    from ..conform.kernel import Kernel, host_of
    from ..conform.log import KernelSide, write_block, write_header
    from ..conform.run import conform

    seconds = None if minutes is None else minutes * 60
    with Kernel(device) as kernel, interruptible() as pressed:
        host, side = host_of(), KernelSide(kernel)
        random = partial(
            conform,
            host,
            side,
            steps=steps,
            seconds=seconds,
            seed=seed,
            blocks=partial(drawn, pressed=pressed),
            pressed=pressed,
        )
        if against is not None:
            outcome = conform_against(host, side, Path(against), pressed)
        elif record is not None:
            with Path(record).open("w", encoding="utf-8") as file:
                write_header(file, platform.release(), side.name, host)
                outcome = random(recorder=lambda calls, answers: write_block(file, calls, answers))
        else:
            outcome = random()
        files = None
        goes_on = outcome.divergence is None and not outcome.interrupted
        if against is None and record is None and goes_on and host.guest_memfd:
            from ..conform.gmem_files import conform_files

            steps = min(steps, _FILE_STEPS)
            with suppress(KeyboardInterrupt):  # the second one: what was compared before is said
                files = conform_files(kernel, steps=steps, seed=seed, flags=host.gmem_flags, stop=pressed)
        outcome.interrupted |= pressed()
    if as_json:
        print(json.dumps(_json(outcome, emit) | {"files": None if files is None else _files_json(files)}, indent=2))
    else:
        print(_text(outcome, emit))
        if files is not None:
            print(_files_text(files))
    if outcome.divergence is not None or (files is not None and files.divergence):
        return 1
    return _INTERRUPTED if outcome.interrupted else 0


def _files_text(files: FileOutcome) -> str:
    from ..conform.gmem_files import FILE_PROMISES

    checked = files.checked()
    if files.divergence:
        return "\n".join(["files of guest_memfd:", *map(str, files.program), files.divergence])
    said = (
        f"files of guest_memfd: {files.steps} system calls and touches, all answered as by the model; "
        f"{len(checked)} of {len(FILE_PROMISES)} promises checked in every case"
    )
    unmet = [promise.name for promise in FILE_PROMISES if promise.name not in checked]
    return "\n".join([said, *(["not every case met: " + ", ".join(unmet)] if unmet else [])])


def _files_json(files: FileOutcome) -> dict[str, Any]:
    from ..conform.gmem_files import FILE_PROMISES

    checked = set(files.checked())
    return {
        "steps": files.steps,
        "promises": {promise.name: promise.name in checked for promise in FILE_PROMISES},
        "divergence": files.divergence,
        "program": list(map(str, files.program)),
    }


def _number(value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number of minutes")
    return value


def _list(*, as_json: bool) -> int:
    from ..abi.facts import FACTS
    from ..conform.gmem_files import FILE_PROMISES
    from ..conform.promises import PROMISES

    promises = (*PROMISES, *FILE_PROMISES)
    if as_json:
        print(json.dumps([{"name": p.name, "says": p.says, "source": p.source} for p in promises], indent=2))
    else:
        for promise in promises:
            print(promise)
        read = sum(not fact.promise for fact in FACTS)
        print(
            f"these {len(promises)} are run on the kernel that is asked; of guest_memfd and its like, {read} more "
            "answers are by source (guestmem explain)"
        )
    return 0


def _program(found: Divergence, name: str, emit: str) -> str:
    if emit == "c":
        from ..conform.emit_c import as_c

        return as_c(found, name)
    from ..conform.emit import as_python

    return as_python(found, name)


def _text(outcome: Outcome, emit: str) -> str:
    from ..conform.emit import heading
    from ..conform.promises import PROMISES

    known = [f"known difference, in {count} VMs: {name}" for name, count in outcome.known.items()]
    if outcome.divergence is not None:
        said = heading(outcome.divergence, outcome.name)
        print(f"after {outcome.calls} calls on {outcome.blocks} VMs:", *said, *known, sep="\n", file=sys.stderr)
        return _program(outcome.divergence, outcome.name, emit).rstrip("\n")
    rate = outcome.calls / outcome.seconds if outcome.seconds else 0
    share = outcome.model_seconds / max(outcome.calls, 1) * 1e6
    expected = "in the log" if " against " in outcome.name else "by the model"
    lines = [
        *(["interrupted; until then:"] if outcome.interrupted else []),
        outcome.name,
        (
            f"{outcome.calls} calls on {outcome.blocks} VMs, all answered as {expected}"
            f"{', but for what is named below' if known else ''}; {rate:.0f} calls/s, of which the model takes "
            f"{share:.0f} µs a call"
        ),
        *known,
    ]
    checked = len(PROMISES) - len(outcome.unchecked)
    lines.append(f"{checked} of {len(PROMISES)} promises checked in every case (guestmem conform --list)")
    if outcome.unchecked:
        lines.append("not every case met: " + ", ".join(outcome.unchecked))
    return "\n".join(lines)


def _json(outcome: Outcome, emit: str) -> dict[str, Any]:
    from ..conform.emit import heading
    from ..conform.promises import PROMISES
    from ..conform.words import answer_in_words

    found = outcome.divergence
    return {
        "kernel": outcome.name,
        "agrees": found is None,
        "interrupted": outcome.interrupted,
        "calls": outcome.calls,
        "vms": outcome.blocks,
        "seconds": round(outcome.seconds, 3),
        "model_us_per_call": round(outcome.model_seconds / max(outcome.calls, 1) * 1e6, 2),
        "known_differences": dict(outcome.known),
        "promises": {promise.name: outcome.checks(promise) for promise in PROMISES},
        "divergence": None
        if found is None
        else {
            "calls": [str(call) for call in found.calls],
            "at": found.at,
            "words": heading(found, outcome.name),
            "repeats": found.repeats,
            "interrupted": found.interrupted,
            "kernel": answer_in_words(found.answered[found.at]),
            "model": answer_in_words(found.expected[found.at]),
            "program": _program(found, outcome.name, emit),
        },
    }
