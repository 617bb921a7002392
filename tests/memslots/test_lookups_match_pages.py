"""By gfn, by id and by host address, slots are found as a dict per page says, while random changes go on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem import Change, MemslotError, Memslots
from guestmem.compiled import own
from guestmem.memslots import Slot
from guestmem.memslots.layout import active_set, generation
from guestmem.memslots.lookup import find, find_hinted, find_id, find_with_hint

IDS, FRAMES, HOST = 60, 200, 40


def _compare(memslots: Memslots, slots: dict[int, Slot], rng: random.Random, as_id: int) -> None:
    pages = {gfn: slot for slot in slots.values() for gfn in range(slot.base_gfn, slot.end_gfn)}
    hint = own(2)
    record = 0
    for gfn in rng.sample(range(FRAMES + 20), 12):
        assert memslots.find(gfn, as_id) == pages.get(gfn)
        found = find(memslots.words, as_id, gfn)
        assert found == find_hinted(memslots.words, as_id, gfn, hint, 0)
        seen = generation(memslots.words, active_set(memslots.words, as_id))
        assert found == find_with_hint(memslots.words, as_id, gfn, record, seen)
        record = found
        assert (memslots.slot_of(found) if found else None) == pages.get(gfn)
    for slot_id in (rng.randrange(IDS), IDS + 3, 1 << 40, (1 << 64) - 1):
        assert memslots.by_id(slot_id, as_id) == slots.get(slot_id)
        assert bool(find_id(memslots.words, as_id, slot_id)) == (slot_id in slots)
    start = rng.randrange(HOST << 12)
    end = start + rng.choice((0, 1, 4096, 9 << 12))
    naive = [
        slot
        for slot in slots.values()
        if slot.userspace_addr < end and slot.userspace_addr + (slot.npages << 12) > start and start < end
    ]
    assert memslots.by_hva(start, end, as_id) == sorted(naive, key=lambda slot: (slot.userspace_addr, slot.id))


@pytest.mark.parametrize("node_words", [17, 64])
def test_random_changes(node_words: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    memslots = Memslots(2, max_slots=IDS, node_words=node_words)
    oracle: tuple[dict[int, Slot], ...] = ({}, {})
    done = 0
    for step in range(sized(1500, 300)):
        as_id, slot_id = rng.randrange(2), rng.randrange(IDS)
        slots = oracle[as_id]
        deletes = rng.random() < (0.8 if step // 100 % 2 else 0.1)  # grow, then shrink
        old = slots.get(slot_id)
        base_gfn = rng.randrange(FRAMES)
        change = Change(slot_id, base_gfn, rng.randrange(1, 6), 4096 * rng.randrange(HOST), rng.randrange(2), as_id)
        if deletes:
            change = Change(slot_id, as_id=as_id)
        elif old is not None:
            change = change._replace(npages=old.npages, userspace_addr=old.userspace_addr)
        try:
            memslots.apply(change)
        except MemslotError:
            pass
        else:
            done += 1
            slots.pop(slot_id, None)
            if not deletes:
                slots[slot_id] = change.as_slot()
        memslots.check()
        _compare(memslots, slots, rng, as_id)
        assert list(memslots) == [
            slot for space in oracle for slot in sorted(space.values(), key=lambda slot: slot.base_gfn)
        ]
    assert done > step // 4


def test_all_slots_may_share_one_host_page(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    count = sized(1000, 150)
    memslots = Memslots(max_slots=count, node_words=24)
    ids = rng.sample(range(count), count)
    for slot_id in ids:
        memslots.create(slot_id, 2 * slot_id, 1, 0x5000)
    assert [slot.id for slot in memslots.by_hva(0x5FFF, 0x6000)] == list(range(count))
    assert not memslots.by_hva(0x4000, 0x5000)
    assert not memslots.by_hva(0x6000, 0x7000)
    for slot_id in ids[: count // 2]:
        memslots.delete(slot_id)
    memslots.check()
    assert [slot.id for slot in memslots.by_hva(0x5000, 0x5001)] == sorted(ids[count // 2 :])


def test_a_hint_dies_with_its_generation() -> None:
    memslots = Memslots()
    memslots.create(0, 10, 5, 0x1000)
    hint = own(2)
    first = find_hinted(memslots.words, 0, 12, hint, 0)
    assert (int(hint[0]), int(hint[1])) == (first, 1)
    memslots.move(0, 100)
    assert find_hinted(memslots.words, 0, 12, hint, 0) == 0
    assert find_with_hint(memslots.words, 0, 12, first, 1) == 0
    assert memslots.slot_of(find_hinted(memslots.words, 0, 102, hint, 0)).base_gfn == 100


def test_the_last_frames_and_addresses_are_found() -> None:
    memslots = Memslots()
    memslots.create(0, (1 << 52) - 3, 2, (1 << 64) - 0x3000)
    slot = memslots.find((1 << 52) - 2)
    assert slot is not None
    assert memslots.find((1 << 52) - 1) is None
    assert memslots.find((1 << 64) - 1) is None
    assert memslots.by_hva((1 << 64) - 0x1001, (1 << 64) - 1) == [slot]
    assert not memslots.by_hva((1 << 64) - 0x1000, (1 << 64) - 1)
    for gfn in (-1, 1 << 64):
        with pytest.raises(MemslotError, match=r"gfn: .* is not in"):
            memslots.find(gfn)
    with pytest.raises(MemslotError, match=r"as_id: 1 is not in 0\.\.0"):
        memslots.find(0, as_id=1)
