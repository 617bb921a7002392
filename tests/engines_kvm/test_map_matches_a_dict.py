"""The map that answers exits finds what a dict of pages finds, and keeps the last read-only slots that went."""

from __future__ import annotations

import random

import pytest

from guestmem.compiled import words
from guestmem.engines.kvm.address_map import map_find, map_insert, map_readonly, map_remove, map_words, was_readonly

pytestmark = pytest.mark.no_kvm
PAGE = 0x1000


@pytest.mark.parametrize("round_", range(5))
def test_random_edits(round_: int, rng: random.Random) -> None:
    rng.seed(rng.random() + round_)
    entries, pages, slots = words(map_words(64)), dict[int, int](), dict[int, int]()
    for _ in range(300):
        start, size = rng.randrange(200), rng.randrange(1, 9)
        if slots and rng.random() < 0.45:
            gone = rng.choice(list(slots))
            assert map_remove(entries, gone * PAGE, 1)
            for page in range(gone, gone + slots.pop(gone)):
                del pages[page]
        elif not pages.keys() & set(range(start, start + size)) and len(slots) < 64:
            map_insert(entries, start * PAGE, (start + size) * PAGE, 0, 0)
            slots[start] = size
            pages.update(dict.fromkeys(range(start, start + size), start))
        for page in range(210):
            entry = int(map_find(entries, page * PAGE + rng.randrange(PAGE)))
            assert (entry != 0) == (page in pages)
    assert not map_remove(entries, 400 * PAGE, 1)


def test_a_readonly_slot_that_went_is_remembered_for_its_update_and_later() -> None:
    entries = words(map_words(4))
    map_insert(entries, 0x1000, 0x3000, 0, 2)
    assert map_readonly(entries, map_find(entries, 0x2000))
    assert not was_readonly(entries, 0x2000, 0)
    map_remove(entries, 0x1000, 5)
    assert [was_readonly(entries, 0x2FFF, began) for began in (0, 4, 5, 6)] == [True, True, True, False]
    assert not was_readonly(entries, 0x3000, 0)
    map_insert(entries, 0x1000, 0x3000, 0, 0)
    map_remove(entries, 0x1000, 7)  # writable: nothing to remember
    assert not was_readonly(entries, 0x2000, 6)


def test_only_the_last_are_remembered() -> None:
    entries = words(map_words(4))
    for update in range(1, 140, 2):
        map_insert(entries, update * PAGE, (update + 1) * PAGE, 0, 2)
        map_remove(entries, update * PAGE, update)
    assert was_readonly(entries, 139 * PAGE, 0)
    assert was_readonly(entries, 13 * PAGE, 0)
    assert not was_readonly(entries, 1 * PAGE, 0)
