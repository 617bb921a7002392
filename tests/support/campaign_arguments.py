"""The arguments of a campaign's command: how many, and from which seed; one line where they are none."""

from __future__ import annotations

import argparse
import os

__all__ = ["campaign_arguments"]


def campaign_arguments(
    doc: str | None, *, count: int | None, seed: int | None, jobs: bool = False
) -> argparse.Namespace:
    """``count`` and ``seed`` of the command line, and ``jobs`` if asked for; of what is None here, one has to be given.

    Exit status 2 for what is no number and for a count below 1: that nothing was wrong in no trial says nothing.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = {"count": (1, count), "seed": (0, seed)} | ({"jobs": (1, os.cpu_count())} if jobs else {})
    for name, (_, default) in wanted.items():
        nargs = None if default is None else "?"
        parser.add_argument(name, metavar=name.upper(), type=int, nargs=nargs, default=default)
    given = parser.parse_args()
    for name, (least, _) in wanted.items():
        if getattr(given, name) < least:
            parser.error(f"{name.upper()}: {getattr(given, name)} is not at least {least}")
    return given
