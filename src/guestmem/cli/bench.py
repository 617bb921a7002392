"""``guestmem bench``: the project's benchmarks, by name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import click

from ..errors import UsageError

__all__ = ["command"]


def _folder() -> Path:
    """Where the benchmarks stand: beside the sources, so in a checkout."""
    folder = Path(__file__).parents[3] / "benchmarks"
    if not (folder / "bench_ranges.py").is_file():
        raise UsageError("bench: the benchmarks are no part of the installed package; run it in a clone of the project")
    return folder


@click.command(
    "bench",
    short_help="What does it cost, beside its peers in the same run?",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(*, name: str | None, arguments: tuple[str, ...]) -> int:
    """Run the benchmark NAME; without a name, list them.

    ARGUMENTS go to the benchmark: most take --quick and --json FILE; `guestmem bench ranges --svg FOLDER` draws time
    over number and length of ranges; `guestmem bench NAME --help` lists the others.
    """
    folder = _folder()
    names = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    if name is None:
        for each in names:
            title = (folder / f"bench_{each}.py").read_text().split('"""')[1].strip().splitlines()[0]
            click.echo(textwrap.fill(title, 80, initial_indent=f"{each:10} ", subsequent_indent=" " * 11))
        return 0
    if name not in names:
        raise UsageError(f"bench: {name!r} is not one of {', '.join(names)}")
    program = [sys.executable, str(folder / f"bench_{name}.py"), *arguments]
    return subprocess.run(program, check=False).returncode  # noqa: S603 - a file of this project, without a shell
