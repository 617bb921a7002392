"""Errors about names of which there are too many for a line: the nearest ones, and what lists them all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import UsageError

__all__ = ["not_one_of"]


def not_one_of(what: str, name: str, known: Iterable[str], listed_by: str) -> UsageError:
    """The error for a name that is not among ``known``, which the command ``listed_by`` lists.

    >>> str(not_one_of("model", "sruc", ["srcu", "srcu-2", "pause"], "explore --list"))
    "model: 'sruc' is not one of 3 of explore --list; near: srcu, srcu-2"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, 2, 0.5)
    return UsageError(
        f"{what}: {name!r} is not one of {len(names)} of {listed_by}" + (f"; near: {', '.join(near)}" if near else "")
    )
