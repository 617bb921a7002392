"""``check()`` names what is broken, whichever word was overwritten."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem import Change, InvariantError, Memslots
from guestmem.memslots import layout, phases

ACTIVE = 8
Plant = Callable[[Memslots, memoryview, int], None]


def _memslots(rng: random.Random) -> Memslots:
    memslots = Memslots(max_slots=80, node_words=33)
    for slot_id in rng.sample(range(80), 80):
        memslots.create(slot_id, 5 * slot_id, 3, 0x1000 * (slot_id % 20))
    for slot_id in rng.sample(range(80), 20):
        memslots.delete(slot_id)
    memslots.check()
    return memslots


def _leaf(cells: memoryview, tree: int) -> int:
    node, height, fanout = cells[tree : tree + 3]
    for _ in range(height):
        node = cells[node + 1 + fanout]
    return node


def _first_record(cells: memoryview, set_: int) -> int:
    return layout.RECORD_WORDS * cells[_leaf(cells, set_) + 1 + cells[set_ + 2]] + int(layout.FIRST_FIELD)


def _add(index: Callable[[memoryview, int], int], value: int) -> Plant:
    def plant(_memslots: Memslots, cells: memoryview, set_: int) -> None:
        cells[index(cells, set_)] += value

    return plant


def _by_id_alone(_memslots: Memslots, cells: memoryview, set_: int) -> None:
    """A record in the table at an id that no slot has: no tree knows it."""
    ids = range(cells[set_ + 6], cells[set_ + 6] + 80)
    unused = next(at for at in ids if not cells[at])
    cells[unused] = next(cells[at] for at in ids if cells[at])


def _desk(index: int, value: int) -> Plant:
    def plant(memslots: Memslots, _cells: memoryview, _set: int) -> None:
        memslots.desk[index] = value

    return plant


def _lose_a_node(memslots: Memslots, cells: memoryview, _set: int) -> None:
    head = int(memslots.desk[int(layout.NODE_FREE)])
    assert head
    memslots.desk[int(layout.NODE_FREE)] = cells[head + 1]


def _free_twice(memslots: Memslots, cells: memoryview, _set: int) -> None:
    head = int(memslots.desk[int(layout.RECORD_FREE)])
    assert head
    cells[layout.RECORD_WORDS * head + int(layout.ORIGIN)] = head


def _free_a_used_record(memslots: Memslots, cells: memoryview, set_: int) -> None:
    used = _first_record(cells, set_) // layout.RECORD_WORDS
    cells[layout.RECORD_WORDS * used + int(layout.ORIGIN)] = int(memslots.desk[int(layout.RECORD_FREE)])
    memslots.desk[int(layout.RECORD_FREE)] = used


def _swap_keys(_memslots: Memslots, cells: memoryview, set_: int) -> None:
    leaf = _leaf(cells, set_) + 1
    cells[leaf + 1], cells[leaf + 2] = cells[leaf + 2], cells[leaf + 1]


def _empty_a_leaf(_memslots: Memslots, cells: memoryview, set_: int) -> None:
    cells[_leaf(cells, set_)] = 1


def _grow_over_the_next(_memslots: Memslots, cells: memoryview, set_: int) -> None:
    cells[_first_record(cells, set_) + 3] += 20
    for each in (16, 32):  # no further than the last of its node, so that no parent notices
        cells[_leaf(cells, each) + 1 + 2 * cells[each + 2]] += 20


PLANTS: dict[str, tuple[Plant, str]] = {
    "keys out of order": (_swap_keys, "follows"),
    "key of another slot": (_add(lambda cells, set_: _leaf(cells, set_) + 2, 1), "its key is"),
    "smallest key of a node": (_add(lambda cells, set_: cells[set_] + 2, 1), "its parent says"),
    "largest end below": (
        _add(lambda cells, set_: cells[set_ + 8] + 1 + 2 * cells[set_ + 10], 1 << 30),
        "its parent says",
    ),
    "id that orders equal keys": (
        _add(lambda cells, set_: _leaf(cells, set_ + 8) + 1 + 3 * cells[set_ + 10], 40),
        "follows|by hva|its parent says",
    ),
    "end of a leaf's entry": (
        _add(lambda cells, set_: _leaf(cells, set_ + 8) + 1 + 2 * cells[set_ + 10], 1 << 30),
        "its parent says",
    ),
    "entries of a node": (_empty_a_leaf, "entries, not"),
    "child": (_add(lambda cells, set_: cells[set_] + 1 + cells[set_ + 2], 1), "is no node"),
    "height": (_add(lambda _cells, set_: set_ + 1, -1), "is no slot record|its key is|count"),
    "fan-out": (_add(lambda _cells, set_: set_ + 2, -1), "fan-out"),
    "count": (_add(lambda _cells, set_: set_ + 5, 1), "count"),
    "table": (_add(lambda cells, set_: cells[set_ + 6] + cells[_first_record(cells, set_) + 1], 1), "the table says"),
    "slot by id alone": (_by_id_alone, "61 slots by id, 60 by gfn"),
    "slot grown": (_add(lambda cells, set_: _first_record(cells, set_) + 3, 1), "by gfn at"),
    "slot grown over the next": (_grow_over_the_next, "overlaps"),
    "empty slot": (_add(lambda cells, set_: _first_record(cells, set_) + 3, -3), "is empty"),
    "slot moved": (_add(lambda cells, set_: _first_record(cells, set_) + 2, 1), "its key is"),
    "slot re-hosted": (_add(lambda cells, set_: _first_record(cells, set_) + 4, 0x1000), "by hva"),
    "space of a slot": (_add(_first_record, 1), "address space"),
    "id of a slot": (_add(lambda cells, set_: _first_record(cells, set_) + 1, 500), "not below"),
    "flags of a slot": (_add(lambda cells, set_: _first_record(cells, set_) + 5, 64), "flags"),
    "file of a slot": (_add(lambda cells, set_: _first_record(cells, set_) + 6, 9), "guest_memfd 9 from 0x0"),
    "offset of a slot": (_add(lambda cells, set_: _first_record(cells, set_) + 7, 0x1000), "guest_memfd 0 from 0x1000"),
    "end by gfn": (_add(lambda cells, set_: _leaf(cells, set_) + 2 + 2 * cells[set_ + 2], -1), "by gfn at"),
    "mark left over": (_add(lambda cells, set_: _first_record(cells, set_) + 5, 1 << 16), "INVALID"),
    "generation in progress": (_add(lambda cells, _set: cells[ACTIVE] + 4, 1 << 63), "generation"),
    "active set": (_add(lambda _cells, _set: ACTIVE, 1), "active set"),
    "phase": (_desk(int(layout.PHASE), int(phases.SWAPPED)), "in phase"),
    "touched chain": (_desk(int(layout.TOUCHED), 3), "chain"),
    "touched off the chain": (_desk(int(layout.CHAIN) + 9, 1), "chain"),
    "nodes counted": (_desk(int(layout.NODES_USED), 7), "nodes: 7 are counted"),
    "records counted": (_desk(int(layout.RECORDS_USED), 7), "records: 7 are counted"),
    "lost node": (_lose_a_node, "neither free nor in use"),
    "free twice": (_free_twice, "free twice"),
    "free and in use": (_free_a_used_record, "are free and in use"),
}


@pytest.mark.parametrize("which", [0, 1], ids=["active", "inactive"])
@pytest.mark.parametrize("name", PLANTS)
def test_planted(name: str, which: int, rng: random.Random) -> None:
    memslots = _memslots(rng)
    cells = memslots._cells
    active = cells[ACTIVE]
    set_ = active if which == 0 else 16 + 32 - active
    assert set_ in {16, 32}
    plant, message = PLANTS[name]
    plant(memslots, cells, set_)
    with pytest.raises(InvariantError, match=message):
        memslots.check()


def test_sets_that_differ_without_an_update(rng: random.Random) -> None:
    memslots = _memslots(rng)
    update = memslots.update()
    update.stage(Change(next(iter(memslots)).id))
    for word in (layout.PHASE, layout.TOUCHED_COUNT, layout.TOUCHED):
        memslots.desk[int(word)] = 0
    for slot_id in range(memslots.ids):
        memslots.desk[int(layout.CHAIN) + slot_id] = 0
    memslots.slots_lock.release()
    with pytest.raises(InvariantError, match="the sets differ in slots"):
        memslots.check()


def test_each_phase_is_sound(rng: random.Random) -> None:
    from guestmem.memslots.invariants import check_memslots

    memslots = _memslots(rng)

    def check() -> None:
        check_memslots(memslots.geometry, memslots._cells, memslots.desk)

    ids = [slot.id for slot in memslots]
    for marks in (False, True):
        for end in ("publish", "abort"):
            with memslots.update() as update:
                check()
                if marks:
                    update.invalidate(ids[0])
                    update.invalidate(ids[1])
                    check()
                    update.publish()
                    check()
                    update.synchronize()
                    check()
                update.stage(Change(ids.pop(0)))
                check()
                update.stage(Change(ids[5], 10_000 + 10 * len(ids), 3, memslots.by_id(ids[5]).userspace_addr))  # type: ignore[union-attr]
                check()
                if end == "publish":
                    update.publish()
                    check()
                    update.synchronize()
                    check()
                    update.mirror()
            check()
