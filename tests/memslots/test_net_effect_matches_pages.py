"""The net effect of a batch is what comparing all pages says: each frame's action, joined, and nothing untouched."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from guestmem import Change, Memslots
from guestmem.memslots import Action, Effect, Slot

FRAMES = 300
LOG, READONLY, GUEST_MEMFD = 1, 2, 4
Memory = tuple[int, int, int, int]
Pages = dict[int, tuple[Memory, int]]


def _memory(slot: Slot, start: int, gfn: int) -> Memory:
    """What is behind a frame, as the slot goes on from ``start``: host page, file, place in it, attributes."""
    past = (gfn - start) << 12
    place = slot.guest_memfd_offset + ((start - slot.base_gfn) << 12) + past if slot.guest_memfd else 0
    return slot.hva(start) + past, slot.guest_memfd, place, slot.attributes


def _pages(slots: dict[int, Slot]) -> Pages:
    return {
        gfn: (_memory(slot, gfn, gfn), slot.flags)
        for slot in slots.values()
        for gfn in range(slot.base_gfn, slot.end_gfn)
    }


def _expected(old: Pages, new: Pages, gfn: int) -> Action | None:
    if gfn not in old:
        return Action.FILL if gfn in new else None
    if gfn not in new or old[gfn][0] != new[gfn][0]:
        return Action.STALL
    before, after = old[gfn][1], new[gfn][1]
    if before == after:
        return Action.KEEP
    return Action.WRITES if any(after & bit and not before & bit for bit in (LOG, READONLY)) else Action.LIFT


def _goes_on(first: Slot | None, second: Slot | None, start: int, gfn: int) -> bool:
    if first is None or second is None:
        return first is second
    return _memory(first, start, gfn) == _memory(second, gfn, gfn) and first.flags == second.flags


def _compare(effects: list[Effect], old: dict[int, Slot], new: dict[int, Slot]) -> None:
    before, after = _pages(old), _pages(new)
    actions: dict[int, Action] = {}
    for effect in effects:
        assert effect.start_gfn < effect.end_gfn
        for gfn in range(effect.start_gfn, effect.end_gfn):
            assert gfn not in actions
            actions[gfn] = effect.action
            for slot, pages in ((effect.old, before), (effect.new, after)):
                assert (slot is None) == (gfn not in pages)
                if slot is not None:
                    assert (_memory(slot, effect.start_gfn, gfn), slot.flags) == pages[gfn]
    touched = [slot for a, b in ((old, new), (new, old)) for slot in a.values() if b.get(slot.id) is not slot]
    frames = {gfn for slot in touched for gfn in range(slot.base_gfn, slot.end_gfn)}
    assert actions == {gfn: _expected(before, after, gfn) for gfn in frames}
    assert effects == sorted(effects, key=lambda effect: effect.start_gfn)
    for a, b in pairwise(effects):
        joinable = (
            a.end_gfn == b.start_gfn
            and a.action is b.action
            and _goes_on(a.old, b.old, a.start_gfn, b.start_gfn)
            and _goes_on(a.new, b.new, a.start_gfn, b.start_gfn)
        )
        assert not joinable, (a, b)


def _run(slots: list[Slot], changes: list[Change]) -> list[Effect]:
    memslots = Memslots()
    for slot in slots:
        memslots.apply(Change.of(slot))
    with memslots.update() as update:
        update.stage_all(changes)
        return update.net_effect()


def test_a_split_and_a_merge_keep_all() -> None:
    whole = Slot(0, 0, 16, 16, 0x10000)
    halves = [Slot(0, 1, 16, 6, 0x10000), Slot(0, 2, 22, 10, 0x16000)]
    split = [Change(0), *(Change(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr) for slot in halves)]
    assert _run([whole], split) == [(16, 32, Action.KEEP, whole, halves[0])]
    merge = [Change(1), Change(2), Change(0, 16, 16, 0x10000)]
    assert _run(halves, merge) == [(16, 32, Action.KEEP, halves[0], whole)]


def test_the_hole_of_a_truncation_is_all_that_stalls() -> None:
    whole, rest = Slot(0, 0, 16, 16, 0x10000), Slot(0, 0, 16, 12, 0x10000)
    effects = _run([whole], [Change(0), Change(0, 16, 12, 0x10000)])
    assert effects == [(16, 28, Action.KEEP, whole, rest), (28, 32, Action.STALL, whole, None)]


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        (0, LOG, Action.WRITES),
        (LOG, 0, Action.LIFT),
        (0, READONLY, Action.WRITES),
        (READONLY, 0, Action.LIFT),
        (READONLY, LOG, Action.WRITES),
        (LOG, LOG, Action.KEEP),
    ],
)
def test_rights(before: int, after: int, action: Action) -> None:
    slot = Slot(0, 0, 16, 16, 0x10000, before)
    effects = _run([slot], [Change(0), Change(0, 16, 16, 0x10000, after)])
    assert effects == [(16, 32, action, slot, slot._replace(flags=after))]


_BOUND = Slot(0, 0, 16, 16, 0x10000, GUEST_MEMFD, 7, 0x8000)


@pytest.mark.parametrize(
    "after",
    [
        _BOUND._replace(guest_memfd=8),
        _BOUND._replace(guest_memfd_offset=0x9000),
        _BOUND._replace(attributes=1),
        _BOUND._replace(flags=0, guest_memfd=0, guest_memfd_offset=0),
    ],
    ids=["file", "offset", "attributes", "no file"],
)
def test_another_file_offset_or_attribute_is_other_memory(after: Slot) -> None:
    for old, new in ((_BOUND, after), (after, _BOUND)):
        assert _run([old], [Change(0), Change.of(new)]) == [(16, 32, Action.STALL, old, new)]


def test_a_split_and_a_merge_of_what_is_in_one_file_keep_all() -> None:
    halves = [_BOUND._replace(id=1, npages=6), Slot(0, 2, 22, 10, 0x16000, GUEST_MEMFD, 7, 0xE000)]
    assert _run([_BOUND], [Change(0), *map(Change.of, halves)]) == [(16, 32, Action.KEEP, _BOUND, halves[0])]
    assert _run(halves, [Change(1), Change(2), Change.of(_BOUND)]) == [(16, 32, Action.KEEP, halves[0], _BOUND)]
    halves[1] = halves[1]._replace(guest_memfd_offset=0x1000)
    effects = _run([_BOUND], [Change(0), *map(Change.of, halves)])
    assert [effect[:3] for effect in effects] == [(16, 22, Action.KEEP), (22, 32, Action.STALL)]


def test_what_comes_and_goes_within_a_batch_is_nothing() -> None:
    assert _run([], [Change(0, 5, 5, 0), Change(0)]) == []


def test_nothing_staged_is_no_effect() -> None:
    memslots = Memslots()
    with memslots.update() as update:
        assert update.net_effect() == []
        update.stage(Change(0, 1, 1, 0))
        update.publish()
        assert update.net_effect() == []


@pytest.mark.parametrize("marks", [False, True])
def test_random_batches(marks: bool, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    memslots = Memslots(max_slots=40, node_words=17)
    slots: dict[int, Slot] = {}
    seen: set[Action] = set()
    for _ in range(sized(400, 60)):
        update = memslots.update()
        new = dict(slots)
        if marks and slots:
            for slot_id in rng.sample(sorted(slots), rng.randrange(len(slots) // 2 + 1)):
                update.invalidate(slot_id)
                slot = slots[slot_id]
                slots[slot_id] = new[slot_id] = Slot(*slot)
            update.publish()
            update.synchronize()
        for _ in range(rng.randrange(1, 12)):
            slot_id = rng.randrange(40)
            old = new.pop(slot_id, None)
            if old is not None:
                update.stage(Change(slot_id))
            if old is not None and rng.random() < 0.2:
                continue
            slot = old or Slot(0, slot_id, rng.randrange(FRAMES), rng.randrange(1, 30), 0)
            start = max(0, slot.base_gfn + rng.choice((0, 0, 0, -3, 4)))
            npages = max(1, slot.npages + rng.choice((0, 0, -2, 5)))
            hva = (start << 12) + (1 << 30) * rng.choice((1, 1, 1, 2))  # mostly the same host memory for a frame
            slot = Slot(0, slot_id, start, npages, hva, rng.randrange(4), attributes=rng.choice((0, 0, 0, 1)))
            if rng.random() < 0.4:  # mostly the same place in the same file for a frame
                place = (start << 12) + (1 << 30) * rng.choice((0, 0, 0, 1))
                slot = slot._replace(flags=GUEST_MEMFD, guest_memfd=rng.choice((7, 7, 7, 8)), guest_memfd_offset=place)
            if all(slot.end_gfn <= other.base_gfn or other.end_gfn <= start for other in new.values()):
                update.stage(Change.of(slot))
                new[slot_id] = slot
        effects = update.net_effect()
        seen |= {effect.action for effect in effects}
        touched = {**slots}
        _compare(effects, touched, {slot_id: _same(slot, slots.get(slot_id), new) for slot_id, slot in new.items()})
        update.publish()
        update.synchronize()
        if rng.random() < 0.9 or marks:
            update.mirror()
        else:
            update.abort()  # after the swap it finishes
        memslots.check()
        slots = {slot.id: slot for slot in memslots}
        assert slots == new
    assert seen == set(Action)


def _same(slot: Slot, old: Slot | None, new: dict[int, Slot]) -> Slot:
    """The slot as staged: the very object of the old set if no entry touched it."""
    return new[slot.id] if old is not slot else old
