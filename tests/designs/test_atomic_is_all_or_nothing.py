"""A batch that ``atomic`` refuses has changed nothing, stalled nobody, and names the entry."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from guestmem.atomics import peek
from guestmem.designs import find
from guestmem.engines import Access
from guestmem.engines.soft import FLUX_MAX
from guestmem.engines.soft import layout as at
from guestmem.errors import BatchError, MemslotError
from guestmem.memslots import Change, Slot
from soft_guest import Guest


def state(guest: Guest) -> tuple[list[Slot], int, tuple[int, ...]]:
    """Slots, generation, and what was done to vCPUs."""
    guest.engine.memslots.check()
    counts = guest.engine.counts
    work = counts.swaps, counts.flushes, counts.ranges_in_flux, counts.kicks, counts.pauses, counts.srcu_waits
    return list(guest.engine.memslots), guest.engine.memslots.generation(), work


def refused(guest: Guest, rng: random.Random) -> Change:
    """A change that is refused whatever comes before it here."""
    return rng.choice(
        (
            guest.change(30),  # no such slot
            guest.change(31, 1000, 4, 1),  # overlaps slot 1
            guest.change(1, 1000, 5, 40),  # resizes slot 1
            Change(1, 1000, 4, guest.hva(1)),  # gives it other memory
            Change(32, 2000, 4, guest.hva(1) + 1),  # unaligned
            Change(33, 2000, 4, guest.hva(1), 0x40),  # unknown flag
            Change(34, 2000, 4, guest.hva(1), 0, 1),  # another address space
        )
    )


def test_random_batches_with_one_bad_entry(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    with Guest(2, access=Access()) as guest:
        guest.create(0, 0, 16, 0)
        guest.create(1, 1000, 4, 40)
        guest.run(guest.same({gfn: gfn for gfn in range(16)}, changed=True))
        apply = find("atomic").prepare(guest.engine)
        invalidations = guest.engine.stage2.invalidations
        for number in range(sized(60, 20)):
            good = [guest.change(0), guest.change(0, 0, 8, 0), guest.change(2, 8, 8, 32)][: rng.randrange(1, 4)]
            batch = [*good, refused(guest, rng), guest.change(3, 500, 4, 44)]
            before = state(guest)
            with pytest.raises(BatchError, match=f"entry {len(good)}: ") as caught:
                apply(guest.engine, batch)
            assert caught.value.entry == len(good)
            assert caught.value.errno is not None
            assert state(guest) == before, f"round {number}: {batch}"
            assert peek(guest.engine._vm, int(at.FLUX)) == 0
        guest.all_move()
        guest.engine.stop()
        assert guest.total("flux_stalls") == 0
        assert guest.engine.stage2.invalidations == invalidations


def many(guest: Guest, ranges: int) -> list[Change]:
    """Takes away ``ranges`` ranges that do not touch."""
    return [guest.change(slot) for slot in range(ranges)]


def test_more_ranges_than_flux_names_change_at_once() -> None:
    with Guest(2, 256, access=Access()) as guest:
        for slot in range(FLUX_MAX + 1):
            guest.create(slot, 2 * slot, 1, slot)
        guest.run(guest.same({2 * slot: slot for slot in range(FLUX_MAX + 1)}, changed=True))
        apply = find("atomic").prepare(guest.engine)
        apply(guest.engine, many(guest, FLUX_MAX + 1))
        assert list(guest.engine.memslots) == []
        guest.engine.memslots.check()


def test_more_entries_than_a_batch_may_have_are_refused() -> None:
    with Guest(1, 8192) as guest:
        apply = find("atomic").prepare(guest.engine)
        most = guest.engine.entries_at_once
        batch = [guest.change(slot, 2 * slot, 1, 0) for slot in range(most + 1)]
        before = state(guest)
        with pytest.raises(MemslotError, match="batch: 4097 entries; 4096 are allowed") as caught:
            apply(guest.engine, batch)
        assert caught.value.errno == errno.E2BIG
        assert state(guest) == before
        assert not guest.engine.memslots.slots_lock.locked()
        apply(guest.engine, batch[:most])
        assert len(list(guest.engine.memslots)) == most
        apply(guest.engine, [guest.change(slot) for slot in range(most)])
        assert list(guest.engine.memslots) == []


def test_an_empty_batch_is_nothing() -> None:
    with Guest(1) as guest:
        before = state(guest)
        for name in ("atomic", "batch", "sequential", "pause_if_overlap"):
            find(name).prepare(guest.engine)(guest.engine, [])
        assert state(guest) == before


def test_batch_takes_its_marks_back() -> None:
    """The 2022 RFC has published INVALID marks when an entry is refused: the slots come back."""
    with Guest(2, access=Access()) as guest:
        guest.create(0, 0, 16, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(16)}, changed=True))
        slots = list(guest.engine.memslots)
        with pytest.raises(BatchError, match="entry 1"):
            find("batch").prepare(guest.engine)(guest.engine, [guest.change(0), guest.change(30)])
        assert state(guest)[0] == slots
        guest.all_move()
        assert guest.total("killed_fetches") + guest.total("holes_read") + guest.total("holes_write") == 0
