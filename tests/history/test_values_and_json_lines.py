"""Histories come from values that were read, and go through JSON lines unchanged; a bad line is named."""

from __future__ import annotations

import random

import pytest

from guestmem.errors import TraceError
from guestmem.history import Access, Reading, Update, Verdict, accesses_of, judge, read_json_lines, write_json_lines


def test_values_say_between_which_updates_they_were_read() -> None:
    versions = {"a": [1, 2, 2, 3], "b": [0, 0, 9, 9], "c": [5, 6, 5, 7]}
    readings = [Reading(0, 1, place, value) for place, values in versions.items() for value in dict.fromkeys(values)]
    found = [(each.where, each.after, each.before, each.others) for each in accesses_of(readings, versions)]
    assert found == [
        ("a", 0, 1, ()),
        ("a", 1, 3, ()),
        ("a", 3, None, ()),
        ("b", 0, 2, ()),
        ("b", 2, None, ()),
        ("c", 0, 1, ((2, 3),)),
        ("c", 1, 2, ()),
        ("c", 3, None, ()),
    ]
    (wrong,) = accesses_of([Reading(0, 1, "a", 4)], versions)
    assert judge([wrong], 3).verdict is Verdict.FAIL
    with pytest.raises(KeyError):
        list(accesses_of([Reading(0, 1, "d", 4)], versions))


def test_two_places_that_changed_one_after_the_other_are_found_out() -> None:
    versions = {"a": ["old", "new"], "b": ["old", "new"]}
    torn = [Reading(0, 1, "a", "new", "vCPU 0"), Reading(2, 3, "b", "old", "vCPU 1")]
    found = judge(accesses_of(torn, versions))
    assert found.verdict is Verdict.FAIL
    assert [each.where for each in found.witness] == ["a", "b"]


def test_json_lines_give_back_what_they_were_given(rng: random.Random) -> None:
    accesses = [
        Access(rng.randrange(9), 9 + rng.random(), 1, rng.choice([None, 2, 3]), ((0, 1),) * rng.randrange(2), who="w")
        for _ in range(50)
    ] + [Access(1, 2, neither=True, where="x")]
    updates = [Update(1, 0, 3), Update(2, 1, 5.5), Update(3, 2, 9)]
    assert read_json_lines(write_json_lines(accesses, updates)) == (accesses, updates)


def test_the_short_form() -> None:
    lines = ['{"start": 3, "end": 7, "saw": "old", "who": "vCPU 1"}', "", '{"start": 5, "end": 9, "saw": "new"}']
    accesses, updates = read_json_lines(lines)
    assert judge(accesses, updates).instants == (3,)


BAD = {
    "{": "h.jsonl:1: Expecting property name",
    "[]": "h.jsonl:1: it is no object",
    '{"start": 1, "end": 2}': "it has neither 'saw' nor 'after' or 'before'",
    '{"start": 1, "end": 0, "saw": "old"}': "it ends at 0, before it starts at 1",
    '{"start": "a", "end": 0, "saw": "old"}': "start: 'a' is not a number",
    '{"start": 0, "end": 1, "saw": "blue"}': "saw: 'blue' is not old, new or neither",
    '{"start": 0, "end": 1, "after": true}': "after: True is not a whole number",
    '{"start": 0, "end": 1, "after": 0, "others": [1]}': "others: [1] is no list of [after, before]",
    '{"start": 0, "end": 1, "saw": "old", "colour": 1}': "'colour' is not one of",
    '{"update": 0, "start": 0, "end": 1}': "update: number 0 is not at least 1",
    '{"start": 0, "end": NaN, "saw": "old"}': "it ends at nan",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_json_lines([line], "h.jsonl")
    assert BAD[line] in str(caught.value)
    assert "\n" not in str(caught.value)
