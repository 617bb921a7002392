"""From values that were read to what they say about updates."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .access import Access

__all__ = ["Reading", "accesses_of"]


class Reading(NamedTuple):
    """``value`` was read at ``where``, at one moment of ``[start, end]``."""

    start: float
    end: float
    where: Hashable
    value: Hashable
    who: str = ""


def accesses_of(readings: Iterable[Reading], versions: Mapping[Any, Sequence[Any]]) -> Iterator[Access]:
    """Accesses for ``judge``, from values.

    ``versions``: for each place its value before all updates, after the first, after the second, and so on.
    A value that was there in several stretches of updates gives an access that can be explained in several ways; one
    that never was there, one that nothing explains. KeyError for a place that is not in ``versions``.

    >>> [(each.after, each.before) for each in accesses_of([Reading(0, 1, "a", 7)], {"a": [5, 7, 7, 9]})]
    [(1, 3)]
    """
    runs: dict[Hashable, dict[Hashable, list[tuple[int, int | None]]]] = {}
    for where, values in versions.items():
        found = runs[where] = {}
        for number, value in enumerate(values):
            if number and value == values[number - 1]:
                continue
            last = next((other for other in range(number, len(values)) if values[other] != value), None)
            found.setdefault(value, []).append((number, last))
    for start, end, where, value, who in readings:
        spans = runs[where].get(value)
        if spans is None:
            yield Access(start, end, neither=True, who=who, where=f"{where}: {value!r}")
        else:
            (after, before), *others = spans
            yield Access(start, end, after, before, (*others,), who=who, where=str(where))
