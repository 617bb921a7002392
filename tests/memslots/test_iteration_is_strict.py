"""A gfn range yields the slots that overlap it, ascending, and no other; clipped, what each shares with it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem import Memslots
from guestmem.compiled import own
from guestmem.memslots import Slot
from guestmem.memslots.layout import active_set
from guestmem.memslots.lookup import CURSOR_WORDS, gfn_next, gfn_seek, hva_next, hva_seek


def _pages(slots: list[Slot]) -> dict[int, int]:
    return {gfn: slot.id for slot in slots for gfn in range(slot.base_gfn, slot.end_gfn)}


def test_the_slot_before_and_the_hole_are_not_yielded() -> None:
    memslots = Memslots()
    memslots.create(0, 1, 1, 0)
    memslots.create(1, 3, 2, 0)
    assert [slot.id for slot in memslots.overlapping(2, 4)] == [1]
    assert [(slot.id, start, end) for slot, start, end in memslots.intersections(2, 4)] == [(1, 3, 4)]
    assert not list(memslots.overlapping(2, 3))


@pytest.mark.parametrize("gfn", [0, 9, 10, 12, 19, 20, 21])
def test_an_empty_or_reversed_range_yields_nothing(gfn: int) -> None:
    memslots = Memslots()
    memslots.create(0, 10, 10, 0)
    assert not list(memslots.overlapping(gfn, gfn))
    assert not list(memslots.overlapping(gfn + 3, gfn))
    assert not list(memslots.intersections(gfn, gfn))
    assert not memslots.by_hva(gfn << 12, gfn << 12)


def test_no_slots_yield_nothing() -> None:
    memslots = Memslots()
    assert not list(memslots.overlapping(0, 1 << 52))
    assert not list(memslots)
    assert len(memslots) == 0


@pytest.mark.parametrize("node_words", [17, 24, 64])
def test_ranges_match_pages(node_words: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    memslots = Memslots(max_slots=400, node_words=node_words)
    gfn, slots = 0, []
    order = rng.sample(range(400), sized(400, 60))
    for slot_id in order:
        gfn += rng.choice((0, 0, 1, 3))
        npages = rng.randrange(1, 6)
        slots.append(Slot(0, slot_id, gfn, npages, 0x1000 * rng.randrange(50)))
        gfn += npages
    for slot in rng.sample(slots, len(slots)):
        memslots.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
    pages = _pages(slots)
    assert list(memslots) == slots
    for _ in range(sized(2000, 300)):
        start = rng.randrange(gfn + 2)
        end = min(start + rng.choice((0, 1, 2, 5, 40, gfn)), gfn + 2)
        seen = list(dict.fromkeys(pages[page] for page in range(start, end) if page in pages))
        assert [slot.id for slot in memslots.overlapping(start, end)] == seen, (start, end)
        clipped = [(slot.id, page) for slot, a, b in memslots.intersections(start, end) for page in range(a, b)]
        assert clipped == [(pages[page], page) for page in range(start, end) if page in pages], (start, end)


@pytest.mark.parametrize("end", range(1, 62))
def test_a_cursor_at_its_end_stays_there(end: int) -> None:
    memslots = Memslots(max_slots=30, node_words=17)
    for slot_id in range(30):
        memslots.create(slot_id, 2 * slot_id, 1, 2 * slot_id << 12)
    set_, cursor = active_set(memslots.words, 0), own(CURSOR_WORDS)
    gfn_seek(memslots.words, cursor, set_, 0, end)
    found = [gfn_next(memslots.words, cursor) for _ in range(40)]
    hva_seek(memslots.words, cursor, set_, 0, end << 12)
    assert found == [hva_next(memslots.words, cursor) for _ in range(40)]
    count = min(30, (end + 1) // 2)
    assert all(found[:count])
    assert not any(found[count:])
