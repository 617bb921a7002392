"""A change is refused with EEXIST when it overlaps another slot, and only then: where the slot itself was is free."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from guestmem import Change, MemslotError, Memslots


def test_a_slot_moves_over_itself() -> None:
    memslots = Memslots()
    memslots.create(0, 100, 10, 0)
    for base_gfn in (95, 100, 109, 101, 91, 200):
        memslots.move(0, base_gfn)
        assert [slot.base_gfn for slot in memslots] == [base_gfn]
    memslots.check()


@pytest.mark.parametrize("base_gfn", [91, 95, 99, 100, 105, 109])
def test_a_slot_does_not_move_over_another(base_gfn: int) -> None:
    memslots = Memslots()
    memslots.create(0, 100, 10, 0)
    memslots.create(1, base_gfn + 20, 10, 0)
    with pytest.raises(MemslotError, match=r"EEXIST: slot 1: .* overlaps Slot 0") as caught:
        memslots.move(1, base_gfn)
    assert caught.value.errno == errno.EEXIST


def test_a_move_past_its_old_place_meets_the_slot_before() -> None:
    memslots = Memslots()
    memslots.create(0, 0, 10, 0)
    memslots.create(1, 12, 10, 0)
    memslots.move(1, 10)
    with pytest.raises(MemslotError, match="overlaps Slot 0"):
        memslots.move(1, 9)


def test_refusals_match_pages(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    memslots = Memslots(max_slots=12, node_words=17)
    pages: dict[int, int] = {}
    refused = 0
    for _ in range(sized(3000, 600)):
        slot_id, base_gfn, npages = rng.randrange(12), rng.randrange(40), rng.randrange(1, 6)
        old = memslots.by_id(slot_id)
        if old is not None and rng.random() < 0.3:
            memslots.delete(slot_id)
            pages = {gfn: owner for gfn, owner in pages.items() if owner != slot_id}
            continue
        npages = npages if old is None else old.npages
        overlaps = any(pages.get(gfn, slot_id) != slot_id for gfn in range(base_gfn, base_gfn + npages))
        if overlaps:
            with pytest.raises(MemslotError) as caught:
                memslots.apply(Change(slot_id, base_gfn, npages))
            assert caught.value.errno == errno.EEXIST
            refused += 1
        else:
            memslots.apply(Change(slot_id, base_gfn, npages))
            pages = {gfn: owner for gfn, owner in pages.items() if owner != slot_id}
            pages |= dict.fromkeys(range(base_gfn, base_gfn + npages), slot_id)
    assert refused > 50
