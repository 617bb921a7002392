"""``guestmem conversions``: what sharing and taking back memory costs, and whether nothing private is seen."""

from __future__ import annotations

import sys

import click

from ._progress import Progress

__all__ = ["command"]

_SIZES = {"4K": 4 << 10, "2M": 2 << 20, "1G": 1 << 30}
_UNITS = {"K": 10, "M": 20, "G": 30}


def _bytes(text: str) -> int:
    from ..errors import UsageError

    number, unit = text[:-1], text[-1:].upper()
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise UsageError(f"size: {text!r} is not a number with K, M or G, such as 512M")
    return int(number) << _UNITS[unit]


@click.command("conversions", short_help="What does sharing and taking back memory cost?")
@click.option("--vcpus", metavar="N", type=click.IntRange(1, 64), default=2, show_default=True, help="vCPUs.")
@click.option("--hosts", metavar="N", type=click.IntRange(1, 15), default=1, show_default=True, help="Host threads.")
@click.option(
    "--model",
    metavar="NAME",
    default="attributes",
    show_default=True,
    help="attributes, mappability, shareability or vm-attributes (docs/gmem.md).",
)
@click.option(
    "--structure", metavar="NAME", default="ranges", show_default=True, help="ranges, or pages: a store for each page."
)
@click.option("--size", metavar="SIZE", default="2G", show_default=True, help="Of the file.")
@click.option(
    "--folio", type=click.Choice(list(_SIZES)), default="4K", show_default=True, help="Of the largest folios."
)
@click.option("--never-join", is_flag=True, help="Leave pages of split folios split.")
@click.option(
    "--pins",
    metavar="N",
    type=click.IntRange(0, 1024),
    default=1,
    show_default=True,
    help="Of 1024 host accesses, pin.",
)
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(0.01, 3600),
    default=1.0,
    show_default=True,
    help="For each length of range.",
)
@click.option(
    "--seed", metavar="S", type=int, default=1, show_default=True, help="Decides what is accessed and converted."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (form: docs/gmem.md).")
def command(
    *,
    vcpus: int,
    hosts: int,
    model: str,
    structure: str,
    size: str,
    folio: str,
    never_join: bool,
    pins: int,
    seconds: float,
    seed: int,
    as_json: bool,
) -> int:
    """Convert ranges of 4 KiB to 1 GiB of a guest_memfd while vCPUs, the host and its pins access them.

    Every run also has conversions that are wrong on purpose, one that leaves the guest's mappings and one that leaves
    the host's: these must be caught. Exit status: 0; 1 if private memory was seen, or a wrong one was not caught; 2 for
    bad input.
    """
    from ..compare.conversions import run_conversions
    from ..report.conversions import conversions_lines

    with Progress() as shown:
        result = run_conversions(
            vcpus=vcpus,
            hosts=hosts,
            generation=model,
            structure=structure,
            size=_bytes(size),
            seconds=seconds,
            folio_size=_SIZES[folio],
            joins=not never_join,
            pins=pins,
            seed=seed,
            progress=shown.at,
        )
    if as_json:
        import json

        json.dump(result.as_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.writelines(line.rstrip() + "\n" for line in conversions_lines(result))
    sys.stdout.flush()
    return 0 if result.ok else 1
