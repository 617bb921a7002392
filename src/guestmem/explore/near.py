"""Errors about names of which there are too many for a line: the nearest ones, and what lists them all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import UsageError

__all__ = ["not_one_of"]

_FITS = 70
"""Columns of an error behind the command's name."""


def not_one_of(what: str, name: str, known: Iterable[str], listed_by: str) -> UsageError:
    """The error for a name that is not among ``known``, which the command ``listed_by`` lists.

    >>> str(not_one_of("model", "sruc", ["srcu", "srcu-2", "pause"], "explore --list"))
    "model: 'sruc' is not one of 3 of explore --list; near: srcu, srcu-2"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, 2, 0.5)
    text = f"{what}: {name!r} is not one of {len(names)} of {listed_by}"
    for count in (2, 1):
        some = f"{text}; near: {', '.join(near[:count])}"
        if near and (len(some) <= _FITS or count == 1):
            return UsageError(some)
    return UsageError(text)
