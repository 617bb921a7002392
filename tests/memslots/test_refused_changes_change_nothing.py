"""A change that is refused leaves both sets as they were and says which entry, which field, and what is allowed."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from guestmem import BatchError, Change, MemslotError, Memslots
from guestmem.compiled import own
from guestmem.memslots import Slot
from guestmem.memslots.layout import RECORD_WORDS, active_set
from guestmem.memslots.lookup import CURSOR_WORDS, gfn_next, gfn_seek, hva_next, hva_seek

LARGEST = (1 << 64) - 1


def contents(memslots: Memslots) -> list[object]:
    """Both sets of each space: generation, table, records word by word, order by gfn and by hva."""
    found: list[object] = []
    cells, cursor = memslots._cells, own(CURSOR_WORDS)
    for as_id in range(memslots.address_spaces):
        space = 8 + 40 * as_id
        found.append(active_set(memslots.words, as_id))
        for set_ in (space + 8, space + 24):
            table = cells[cells[set_ + 6] : cells[set_ + 6] + memslots.ids].tolist()
            found += [table, cells[set_ + 4], cells[set_ + 5]]
            found.append([cells[RECORD_WORDS * record :][:RECORD_WORDS].tolist() for record in table if record])
            gfn_seek(memslots.words, cursor, set_, 0, 1 << 52)
            found.append(list(iter(lambda: gfn_next(memslots.words, cursor), 0)))
            hva_seek(memslots.words, cursor, set_, 0, LARGEST)
            found.append(list(iter(lambda: hva_next(memslots.words, cursor), 0)))
    return found


def _filled(rng: random.Random, count: int, node_words: int = 17) -> Memslots:
    memslots = Memslots(max_slots=2 * count, node_words=node_words)
    for slot_id in rng.sample(range(count), count):
        memslots.create(slot_id, 10 * slot_id, 8, 0x1000 * rng.randrange(30), rng.randrange(2))
    return memslots


WRONG = [
    (Change(7), errno.EINVAL, "slot 7: no such slot"),
    (Change(5, 200, 1), errno.EINVAL, r"slot: 5 is not in 0\.\.4"),
    (Change(LARGEST, 200, 1), errno.EINVAL, "slot: .* is not in"),
    (Change(-1, 200, 1), errno.EINVAL, "slot -1: slot -1 is not in"),
    (Change(1 << 64, 200, 1), errno.EINVAL, "is not in"),
    (Change(3, -1, 1), errno.EINVAL, "slot 3: base_gfn -1 is not in"),
    (Change(3, 200, -1), errno.EINVAL, "npages -1 is not in"),
    (Change(3, 200, 1 << 31), errno.EINVAL, "memory_size 0x80000000000 is more than 0x7fffffff pages"),
    (Change(3, 200, 1, -4096), errno.EINVAL, "userspace_addr -4096 is not in"),
    (Change(3, 200, 1, 0x1800), errno.EINVAL, "userspace_addr 0x1800 is not a multiple of 0x1000"),
    (Change(3, 200, 1, LARGEST - 4095), errno.EINVAL, "userspace_addr .* passes"),
    (Change(3, (1 << 52) - 1, 1), errno.EINVAL, r"guest_phys_addr .* passes 2\*\*64"),
    (Change(3, 1 << 52, 1), errno.EINVAL, r"guest_phys_addr .* passes 2\*\*64"),
    (Change(3, LARGEST, 2), errno.EINVAL, r"guest_phys_addr .* passes 2\*\*64"),
    (Change(3, 200, 1, 0, 4), errno.EBADF, "guest_memfd 0 is not open"),
    (Change(3, 200, 1, 0, 5, 0, 7), errno.EINVAL, "flags 0x5 are not of 0x4"),
    (Change(3, 200, 1, 0, 4, 0, 7, 0x800), errno.EINVAL, "guest_memfd_offset 0x800 is unaligned"),
    (Change(0, 0, 8, 0x4000, 4, 0, 7), errno.EINVAL, "can only be deleted"),
    (Change(0, 0, 8, 0x4000, attributes=1), errno.EINVAL, "attributes 0x1 differs from 0x0"),
    (Change(3, 200, 1, 0, 1 << 16), errno.EINVAL, "flags 0x10000 are not of"),
    (Change(3, 200, 1, 0, 0, 1), errno.EINVAL, "as_id"),
    (Change(3, 200, 1, 0, 0, -1), errno.EINVAL, "as_id"),
    (Change(0, 0, 9, 0x4000), errno.EINVAL, "npages 0x9 differs from 0x8"),
    (Change(0, 0, 7, 0x4000), errno.EINVAL, "npages 0x7 differs from 0x8"),
    (Change(0, 0, 8, 0x5000), errno.EINVAL, "userspace_addr 0x5000 differs from 0x4000"),
    (Change(0, 0, 8, 0x4000, 2), errno.EINVAL, "flags 0x2 differs from 0x0"),
    (Change(0, 15, 8, 0x4000), errno.EEXIST, r"slot 0: .* overlaps Slot 1"),
    (Change(3, 7, 1), errno.EEXIST, r"slot 3: .* overlaps Slot 0"),
    (Change(3, 0, 100), errno.EEXIST, "overlaps"),
]


@pytest.mark.parametrize(("change", "number", "message"), WRONG, ids=[repr(change) for change, *_ in WRONG])
def test_one_change(change: Change, number: int, message: str) -> None:
    memslots = Memslots(max_slots=5)
    memslots.create(0, 0, 8, 0x4000)
    memslots.create(1, 20, 8, 0x4000)
    before = bytes(memslots._cells)
    if change == Change(7):
        memslots.max_slots = 8
    with pytest.raises(MemslotError, match=message) as caught:
        memslots.apply(change)
    assert caught.value.errno == number
    assert bytes(memslots._cells) == before
    with memslots.update() as update, pytest.raises(MemslotError, match=message) as staged:
        update.stage(change)
    assert staged.value.errno == number
    assert bytes(memslots._cells) == before
    memslots.check()


def test_create_refuses_a_slot_that_exists() -> None:
    memslots = Memslots()
    memslots.create(0, 0, 8, 0x4000)
    for base_gfn in (0, 20):
        with pytest.raises(MemslotError, match="slot 0: it exists: Slot 0") as caught:
            memslots.create(0, base_gfn, 8, 0x4000)
        assert caught.value.errno == errno.EEXIST
    memslots.check()
    with pytest.raises(MemslotError, match="EINVAL: slot 1: no such slot"):
        memslots.move(1, 0)
    with pytest.raises(MemslotError, match="EINVAL: slot 1: no such slot"):
        memslots.set_flags(1, 1)


def test_each_entry_sees_what_the_ones_before_did() -> None:
    memslots = Memslots()
    memslots.create(0, 0, 8, 0x4000)
    changes = [Change(0), Change(1, 0, 4, 0x4000), Change(2, 4, 4, 0x8000), Change(1), Change(1, 8, 4, 0xC000)]
    with memslots.update() as update:
        kinds = update.stage_all(changes)
        assert [slot.id for slot in memslots] == [0]
        update.publish()
    assert [kind.value for kind in kinds] == ["delete", "create", "create", "delete", "create"]
    assert list(memslots) == [Slot(0, 2, 4, 4, 0x8000), Slot(0, 1, 8, 4, 0xC000)]
    memslots.check()


def test_a_batch_is_undone_whole_and_names_its_entry(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    count = sized(60, 20)
    memslots = _filled(rng, count)
    for _ in range(sized(200, 40)):
        before = contents(memslots)
        slots = {slot.id: slot for slot in memslots}
        changes: list[Change] = []
        for _ in range(rng.randrange(12)):  # whatever is legal now, by a dict of slots
            slot_id = rng.randrange(2 * count)
            if slot_id in slots:
                del slots[slot_id]
                changes.append(Change(slot_id))
            else:
                base_gfn = 10 * rng.randrange(4 * count) + rng.randrange(3)
                if all(base_gfn + 7 <= slot.base_gfn or slot.end_gfn <= base_gfn for slot in slots.values()):
                    changes.append(Change(slot_id, base_gfn, 7, 0x1000 * rng.randrange(30)))
                    slots[slot_id] = changes[-1].as_slot()
        free = next(slot_id for slot_id in range(2 * count) if slot_id not in slots)
        changes.append(Change(free))
        update = memslots.update()
        marked = [slot_id for slot_id in rng.sample(range(count), 3) if rng.random() < 0.3 and memslots.by_id(slot_id)]
        for slot_id in marked:
            update.invalidate(slot_id)
        update.publish()
        update.synchronize()
        with pytest.raises(BatchError, match=f"EINVAL: entry {len(changes) - 1}: slot {free}: no such slot") as caught:
            update.stage_all(changes)
        assert (caught.value.entry, caught.value.errno) == (len(changes) - 1, errno.EINVAL)
        memslots.check()
        after = contents(memslots)
        if marked:  # the marks were published and taken back: same slots, two swaps later
            assert [part for part in after if not isinstance(part, int)] == [
                part for part in before if not isinstance(part, int)
            ]
        else:
            assert after == before
        if rng.random() < 0.3:
            with memslots.update() as other:
                other.stage_all(changes[:-1])
                other.publish()
            assert {slot.id: slot for slot in memslots} == slots


def test_a_staged_entry_that_is_refused_leaves_the_ones_before(rng: random.Random) -> None:
    memslots = _filled(rng, 10)
    with memslots.update() as update:
        update.stage(Change(3))
        with pytest.raises(MemslotError, match="no such slot"):
            update.stage(Change(3))
        update.publish()
    assert memslots.by_id(3) is None
    assert len(memslots) == 9
    memslots.check()
