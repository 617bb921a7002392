"""Entries from Python, with each field of a bundle by itself, do what the function does, in either of their forms."""

from __future__ import annotations

import random
from inspect import signature
from typing import Any

import pytest

from guestmem.entries import flat
from guestmem.stage2 import PageTable, Pool, Rights, arm_stage2
from guestmem.stage2.walk import lookup

PAGE = 0x1000


def plain(function: Any) -> Any:
    return getattr(function, "py_func", function)


@pytest.mark.parametrize("alone", [False, True])
def test_an_entry_finds_what_the_table_has(alone: bool, rng: random.Random) -> None:
    table = PageTable(arm_stage2(PAGE, 40), Pool(64))
    mapped = {page: 0x4000_0000 + page * PAGE for page in rng.sample(range(1024), 100)}
    for page, output in mapped.items():
        table.map(page * PAGE, PAGE, output, Rights.RW)
    entry = flat(lookup, alone=alone)
    words = (*table.words, table.desks[0])
    found = {page: int(entry(*words, page * PAGE)) for page in range(1024)}
    fails = {status for page, status in found.items() if page not in mapped}
    assert {status for page, status in found.items() if page in mapped} == {0}
    assert 0 not in fails
    assert fails


def test_its_parameters_are_the_fields() -> None:
    names = [list(signature(plain(flat(lookup, alone=alone))).parameters) for alone in (False, True)]
    assert names[0] == names[1] == ["table_shape", "table_pool", "table_pages", "table_mmu", "table_desk", "address"]


def test_an_entry_is_made_once() -> None:
    assert flat(lookup) is flat(lookup)
    assert flat(lookup) is not flat(lookup, alone=True)
