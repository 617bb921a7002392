"""How much of a campaign a test carries out: a slice in ``make test``, the whole in ``make night``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["WHOLE", "one_in", "only", "sliced"]

WHOLE = os.environ.get("GUESTMEM_WHOLE") == "1"
"""Whether campaigns are carried out whole; else cases that are marked ``night`` are left out (``conftest.py``)."""


def sliced(slice_: int, whole: int) -> int:
    """``slice_``, or ``whole`` where GUESTMEM_WHOLE=1."""
    return whole if WHOLE else slice_


def one_in(count: int, cases: Iterable[Any]) -> list[Any]:
    """Cases to parametrize with: the first, then each ``count``-th; those between are for the night."""
    return [case if number % count == 0 else _at_night(case) for number, case in enumerate(cases)]


def only(these: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases to parametrize with: those in ``these``, all of which are to be there; the others are for the night."""
    cases = list(cases)
    missing = [each for each in these if each not in cases]
    assert not missing, f"{missing} are no cases"
    return [case if case in these else _at_night(case) for case in cases]


def _at_night(case: Any) -> Any:
    if hasattr(case, "marks"):  # a pytest.param
        return pytest.param(*case.values, id=case.id, marks=(*case.marks, pytest.mark.night))
    return pytest.param(case, marks=pytest.mark.night)
