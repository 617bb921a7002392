"""As many slots as on x86, 32,764 in one set, and ids up to 32,766 where the kernel's own are allowed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem import Change, MemslotError, Memslots
from guestmem.memslots import KVM_MEM_SLOTS_NUM, KVM_USER_MEM_SLOTS
from guestmem.memslots.layout import RECORDS_USED


def test_a_full_set(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    count = sized(KVM_USER_MEM_SLOTS, 400)
    memslots = Memslots(max_slots=count)
    order = rng.sample(range(count), count)
    for slot_id in order:
        memslots.create(slot_id, 3 * slot_id, 2, 0x7F0000000000 + 0x1000 * (slot_id % 1000))
    for internal in range(count, count + 3):
        memslots.create(internal, 3 * internal, 2, 0, internal=True)
    memslots.check()
    assert len(memslots) == memslots.ids == count + KVM_MEM_SLOTS_NUM - KVM_USER_MEM_SLOTS
    assert [slot.id for slot in memslots] == list(range(count + 3))
    for slot_id in rng.sample(range(count), sized(2000, 100)):
        slot = memslots.by_id(slot_id)
        assert slot is not None
        assert slot == memslots.find(3 * slot_id + 1)
        assert memslots.find(3 * slot_id + 2) is None
    for slot_id in order[: count - 5]:
        memslots.delete(slot_id)
    memslots.check()
    assert sorted(slot.id for slot in memslots if slot.id < count) == sorted(order[count - 5 :])
    with memslots.update() as update:  # a whole set invalidated, then replaced in one more swap
        for slot in memslots:
            update.invalidate(slot.id)
        update.publish()
        update.synchronize()
    memslots.check()


def test_the_most_that_one_update_can_hold(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    count = sized(500, 60)
    memslots = Memslots(max_slots=count, node_words=17)
    for slot_id in range(count):
        memslots.create(slot_id, 3 * slot_id, 2, 0)
    for _ in range(3):
        with memslots.update() as update:
            for slot_id in rng.sample(range(count), count):
                update.invalidate(slot_id)
            update.publish()
            update.synchronize()
            for slot in rng.sample(list(memslots), count):
                update.stage(Change(slot.id))
                update.stage(Change(slot.id, slot.base_gfn, 2, 0x5000))
            assert memslots.desk[RECORDS_USED] == 3 * count  # originals, marked copies, replacements
            update.publish()
        memslots.check()
    assert len(memslots) == count


def test_ids_of_the_kernel_need_leave() -> None:
    memslots = Memslots()
    memslots.create(KVM_USER_MEM_SLOTS - 1, 0, 1, 0)
    for slot_id in (KVM_USER_MEM_SLOTS, KVM_MEM_SLOTS_NUM - 1):
        with pytest.raises(MemslotError, match=r"slot: \d+ is not in 0\.\.32763"):
            memslots.create(slot_id, 10 + slot_id, 1, 0)
        memslots.create(slot_id, 10 + slot_id, 1, 0, internal=True)
        memslots.delete(slot_id, internal=True)
    with pytest.raises(MemslotError, match=r"slot: 32767 is not in 0\.\.32766"):
        memslots.create(KVM_MEM_SLOTS_NUM, 10, 1, 0, internal=True)
