"""A slice of a campaign is always the same one; the rest carries the mark `night`, and is run with GUESTMEM_WHOLE=1."""

from __future__ import annotations

import os
from typing import Any

import pytest

from slices import one_in, only, sliced


def at_night(case: Any) -> bool:
    return any(mark.name == "night" for mark in getattr(case, "marks", ()))


def test_one_in_so_many() -> None:
    cases = one_in(3, "abcdefg")
    assert [case for case in cases if not at_night(case)] == ["a", "d", "g"]
    assert [case.values for case in cases if at_night(case)] == [("b",), ("c",), ("e",), ("f",)]


def test_a_case_keeps_its_name_and_its_marks() -> None:
    _, case = one_in(2, [1, pytest.param(2, 3, id="two", marks=pytest.mark.slow)])
    assert (case.values, case.id, [mark.name for mark in case.marks]) == ((2, 3), "two", ["slow", "night"])


def test_only_these_which_are_to_be_there() -> None:
    assert [at_night(case) for case in only(["b"], ["a", "b"])] == [True, False]
    with pytest.raises(AssertionError, match=r"\['c'\] are no cases"):
        only(["c"], ["a", "b"])


@pytest.mark.parametrize("case", one_in(2, ["day", "night"]))
def test_those_of_the_night_are_left_out_by_day(case: str) -> None:
    whole = os.environ.get("GUESTMEM_WHOLE") == "1"
    assert whole or case == "day"
    assert sliced(1, 2) == 1 + whole
