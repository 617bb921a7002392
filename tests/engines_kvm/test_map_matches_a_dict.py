"""The map that answers exits finds what a dict of pages finds, and keeps the last read-only slots that went."""

from __future__ import annotations

import random

import pytest

from guestmem.compiled import Words, words
from guestmem.engines.kvm.address_map import (
    forget_readonly,
    map_begin,
    map_find,
    map_insert,
    map_readonly,
    map_remove,
    map_words,
    readonly_gone,
    was_readonly,
)

pytestmark = pytest.mark.no_kvm
PAGE = 0x1000


@pytest.mark.parametrize("round_", range(5))
def test_random_edits(round_: int, rng: random.Random) -> None:
    rng.seed(rng.random() + round_)
    entries, pages, slots = map_of(64), dict[int, int](), dict[int, int]()
    for _ in range(300):
        start, size = rng.randrange(200), rng.randrange(1, 9)
        if slots and rng.random() < 0.45:
            gone = rng.choice(list(slots))
            assert map_remove(entries, gone * PAGE)
            for page in range(gone, gone + slots.pop(gone)):
                del pages[page]
        elif not pages.keys() & set(range(start, start + size)) and len(slots) < 64:
            map_insert(entries, start * PAGE, (start + size) * PAGE, 0, 0)
            slots[start] = size
            pages.update(dict.fromkeys(range(start, start + size), start))
        for page in range(210):
            entry = int(map_find(entries, page * PAGE + rng.randrange(PAGE)))
            assert (entry != 0) == (page in pages)
    assert not map_remove(entries, 400 * PAGE)


def map_of(slots: int) -> Words:
    entries = words(map_words(slots))
    map_begin(entries, slots)
    return entries


def test_a_readonly_slot_that_went_is_remembered_until_the_update_is_over() -> None:
    entries = map_of(4)
    map_insert(entries, 0x1000, 0x3000, 0, 2)
    assert map_readonly(entries, map_find(entries, 0x2000))
    assert not was_readonly(entries, 0x2000)
    map_remove(entries, 0x1000)
    assert [was_readonly(entries, place) for place in (0xFFF, 0x1000, 0x2FFF, 0x3000)] == [False, True, True, False]
    assert readonly_gone(entries) == 1
    forget_readonly(entries)
    assert not was_readonly(entries, 0x2000)
    map_insert(entries, 0x1000, 0x3000, 0, 0)
    map_remove(entries, 0x1000)  # writable: nothing to remember
    assert not was_readonly(entries, 0x2000)


@pytest.mark.parametrize("slots", [4, 500])
def test_all_of_one_update_are_remembered(slots: int) -> None:
    entries = map_of(slots)
    for page in range(1, 2 * slots, 2):
        map_insert(entries, page * PAGE, (page + 1) * PAGE, 0, 2)
    for page in range(1, 2 * slots, 2):
        map_remove(entries, page * PAGE)
    assert [was_readonly(entries, page * PAGE) for page in range(2 * slots)] == [False, True] * slots
    map_insert(entries, PAGE, 2 * PAGE, 0, 2)
    map_remove(entries, PAGE)  # more often than there are slots: any place may have been one
    assert was_readonly(entries, 4 * PAGE)
