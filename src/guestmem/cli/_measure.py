"""What commands that compare designs share: their arguments, where the figures go, and the exit status."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import click

from ..errors import UsageError
from . import _completion

__all__ = ["WEAK", "Measured", "check_json", "designs_option", "finish", "json_option", "size", "vcpus_option"]

WEAK = 3
"""Exit status of a run that did not catch the design that is broken on purpose."""


class Measured(Protocol):
    """A comparison that was made."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it: it has what was measured so far."""

    @property
    def strong_enough(self) -> bool:
        """Whether the design that is broken on purpose was caught."""

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""


def _numbers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Lists of vCPU counts, such as 1,2,4, without what is there twice."""
    value = ",".join(values)
    try:
        counts = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2,4,8") from None
    for count in counts:
        if not 1 <= count <= 256:
            raise click.BadParameter(f"{count} vCPUs; 1 to 256 are allowed")
    return counts


def size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """A size such as 64M or 1G, in bytes."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,12})([KMG]?)(i?B)?", value, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a size such as 64M or 1G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


Option = Callable[[Callable[..., Any]], Callable[..., Any]]

vcpus_option = click.option(
    "--vcpus",
    metavar="N,…",
    multiple=True,
    default=("1,2,4,8",),
    show_default="1,2,4,8",
    callback=_numbers,
    help="vCPU counts (repeat for more).",
)
json_option = click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Also write all figures as JSON (-: only that).",
)


def designs_option(complete: Callable[..., list[str]] = _completion.designs, what: str = "design") -> Option:
    """``--design``, of which a shell completes the names."""
    return click.option(
        "--design",
        "designs",
        metavar="NAME",
        multiple=True,
        shell_complete=complete,
        help=f"Only this {what} (repeat for more).",
    )


def check_json(file: str | None) -> None:
    """UsageError, before anything is measured, for a file that cannot be written."""
    if file not in {None, "-"} and not Path(str(file)).absolute().parent.is_dir():
        raise UsageError(f"--json {file}: there is no such folder")
    if file and Path(file).is_dir():
        raise UsageError(f"--json {file}: a folder; a file is allowed")


def finish(measured: Measured, show: Callable[[], object], json_file: str | None) -> int:
    """Write the figures, ``show`` them unless only JSON was asked for, and return the exit status."""
    if json_file:
        import json

        text = json.dumps(measured.as_dict(), indent=2) + "\n"
        if json_file == "-":
            sys.stdout.write(text)
        else:
            Path(json_file).write_text(text)
    if json_file != "-":
        show()
    sys.stdout.flush()
    if measured.interrupted:
        return 130
    return 0 if measured.strong_enough else WEAK
