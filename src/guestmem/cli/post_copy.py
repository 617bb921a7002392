"""``guestmem post-copy``: a guest whose memory comes while it runs, beside one that waits for it."""

from __future__ import annotations

import sys

import click

from ._progress import Progress

__all__ = ["command"]


def _numbers(text: str) -> tuple[int, ...]:
    from ..errors import UsageError

    numbers = tuple(int(part) for part in text.split(",") if part.isascii() and part.isdigit() and len(part) < 3)
    if len(numbers) != len(text.split(",")) or not all(1 <= number <= 64 for number in numbers):
        raise UsageError(f"vcpus: {text!r} is not a list of numbers from 1 to 64, such as 1,2,4")
    return numbers


@click.command("post-copy", short_help="What does a page cost that comes when it is touched?")
@click.option("--vcpus", metavar="N,N", default="1,2,4", show_default=True, help="Numbers of vCPUs.")
@click.option(
    "--size", metavar="MIB", type=click.IntRange(1, 4096), default=64, show_default=True, help="Of memory, in MiB."
)
@click.option(
    "--latency",
    metavar="US",
    type=click.IntRange(0, 1_000_000),
    default=100,
    show_default=True,
    help="Of a request for one page, in µs.",
)
@click.option("--stream/--no-stream", default=True, show_default=True, help="Send all pages in order meanwhile.")
@click.option("--seed", metavar="S", type=int, default=1, show_default=True, help="Decides what is accessed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (form: docs/gmem.md).")
def command(*, vcpus: str, size: int, latency: int, stream: bool, seed: int, as_json: bool) -> int:
    """Bring memory to a guest that runs, by KVM Userfault, and to one that waits until all of it is there.

    Every run also has a bit that is cleared too early, and a flag that is switched on without a zap: these must be
    caught. Exit status: 0; 1 if a vCPU saw a page that was not there, a write was lost, or a wrong variant was not
    caught; 2 for bad input.
    """
    numbers = _numbers(vcpus)
    from ..compare.post_copy import run_post_copy
    from ..report.post_copy import post_copy_lines

    with Progress() as shown:
        result = run_post_copy(
            vcpus=numbers, size=size << 20, latency=latency * 1000, stream=stream, seed=seed, progress=shown.at
        )
    if as_json:
        import json

        json.dump(result.as_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.writelines(line.rstrip() + "\n" for line in post_copy_lines(result))
    sys.stdout.flush()
    return 0 if result.ok else 1
