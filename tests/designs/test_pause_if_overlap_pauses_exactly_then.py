"""``pause_if_overlap`` pauses if a page that a removed range had is one that an added range has, or if what is removed
could have to come back; and then only."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from guestmem.designs import find
from guestmem.designs.pause_if_overlap import overlaps
from guestmem.errors import BatchError, MemslotError
from guestmem.memslots import Change, Slot
from soft_guest import Guest


def naive(changes: list[Change], slots: dict[int, Slot]) -> bool:
    """Page by page: the source of a move is removed, its target added."""
    slots = dict(slots)
    removed: set[int] = set()
    added: set[int] = set()
    for change in changes:
        old = slots.pop(change.slot, None)
        stays = old is not None and not change.deletes and old.base_gfn == change.base_gfn
        if old is not None and not stays:
            removed |= set(range(old.base_gfn, old.end_gfn))
        if not change.deletes:
            slots[change.slot] = change.as_slot()
            if not stays:
                added |= set(range(change.base_gfn, change.base_gfn + change.npages))
    return bool(removed & added)


def random_changes(rng: random.Random) -> tuple[list[Change], dict[int, Slot]]:
    """Changes of slots that need not be valid together: the condition looks only at ranges."""
    slots = {
        slot: Slot(0, slot, gfn, npages, 0)
        for slot in range(rng.randrange(5))
        for gfn, npages in [(rng.randrange(60), rng.randrange(1, 7))]
    }
    changes = []
    for _ in range(rng.randrange(7)):
        slot = rng.randrange(6)
        npages = rng.choice((0, 0, 1, 2, 5))
        gfn = slots[slot].base_gfn if slot in slots and rng.random() < 0.3 else rng.randrange(60)
        changes.append(Change(slot, gfn, npages))
    return changes, slots


def test_the_condition_matches_pages(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    answers = {True: 0, False: 0}
    for _ in range(sized(20_000, 5_000)):
        changes, slots = random_changes(rng)
        wanted = naive(changes, slots)
        assert overlaps(changes, slots) == wanted, (changes, slots)
        answers[wanted] += 1
    assert min(answers.values()) > 500, answers


def test_vcpus_are_paused_exactly_then() -> None:
    with Guest(2) as guest:
        apply = find("pause_if_overlap").prepare(guest.engine)
        for changes, pauses in (
            ([guest.change(0, 0, 8, 0)], 0),
            ([guest.change(1, 8, 8, 8)], 0),
            ([guest.change(1)], 0),
            ([guest.change(0, 0, 8, 0, 1)], 0),
            ([guest.change(0), guest.change(1, 8, 8, 8)], 0),
            ([guest.change(1), guest.change(0, 15, 8, 8)], 1),
            ([guest.change(0, 16, 8, 8, 0)], 1),  # moves by less than its size
            ([guest.change(0, 32, 8, 8, 0)], 1),  # of a move that is refused, the source was away
            ([guest.change(0), guest.change(0, 64, 8, 8)], 1),  # a slot that goes and comes cannot come first
            ([guest.change(2, 0, 4, 0), guest.change(0)], 0),
            ([guest.change(2), guest.change(3, 80, 4, 0)], 0),
        ):
            before = guest.engine.counts.copy()
            apply(guest.engine, changes)
            assert (guest.engine.counts - before).pauses == pauses, changes


def test_what_is_refused_was_never_away() -> None:
    """Of a batch whose last entry is refused, no slot of before was removed while vCPUs ran."""
    with Guest(2) as guest:
        engine = guest.engine
        apply = find("pause_if_overlap").prepare(engine)
        for change in (guest.change(0, 0, 8, 0), guest.change(1, 8, 8, 8)):
            apply(engine, [change])
        before, paused = engine.counts.pauses, []
        carry_out = engine.set_memory_region

        def noted(change: Change) -> object:
            paused.append((change.deletes, engine.counts.pauses > before))
            return carry_out(change)

        engine.set_memory_region = noted  # type: ignore[method-assign, assignment]
        for refused in ([guest.change(0), guest.change(2, 12, 8, 0)], [guest.change(0, 12, 8, 0, 0)]):
            with pytest.raises(BatchError) as error:
                apply(engine, refused)
            assert error.value.entry == len(refused) - 1
        assert paused
        assert not [entry for entry in paused if entry == (True, False)]
        assert [slot.id for slot in engine.memslots] == [0, 1]


def test_what_does_not_fit_beside_what_goes_is_done_in_a_pause() -> None:
    """As with as many slots as there can be: first comes the delete then, and nobody runs meanwhile."""
    with Guest(2) as guest:
        engine = guest.engine
        apply = find("pause_if_overlap").prepare(engine)
        apply(engine, [guest.change(0, 0, 8, 0)])
        before = engine.counts.pauses
        carry_out = engine.set_memory_region

        def full(change: Change) -> object:
            if not change.deletes and len([*engine.memslots]) == 1:
                raise MemslotError(errno.EINVAL, "slot 2: there are as many as there can be")
            return carry_out(change)

        engine.set_memory_region = full  # type: ignore[method-assign, assignment]
        apply(engine, [guest.change(0), guest.change(2, 64, 8, 8)])
        assert [slot.id for slot in engine.memslots] == [2]
        assert engine.counts.pauses == before + 1
