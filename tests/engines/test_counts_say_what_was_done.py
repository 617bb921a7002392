"""An engine counts what it did: swaps, waits, kicks, flushes, ranges in flux; and nothing for what it did not do."""

from __future__ import annotations

import pytest

from guestmem.engines import Counts
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, ChangeKind
from soft_guest import Guest

LOG = KVM_MEM_LOG_DIRTY_PAGES


def done(guest: Guest, before: Counts) -> tuple[int, ...]:
    counts = guest.engine.counts - before
    return counts.swaps, counts.srcu_waits, counts.flushes, counts.kicks, counts.ranges_in_flux, counts.pauses


def test_one_change_as_kvm_does_it() -> None:
    """DELETE and MOVE: two swaps, each with wait and kick, and a flush. CREATE: one swap. FLAGS_ONLY: and a flush."""
    with Guest(3) as guest:
        for change, kind, wanted in (
            (guest.change(0, 0, 4, 0), ChangeKind.CREATE, (1, 1, 0, 3, 0, 0)),
            (guest.change(0, 8, 4, 0), ChangeKind.MOVE, (2, 2, 1, 9, 0, 0)),
            (guest.change(0, 8, 4, 0, LOG), ChangeKind.FLAGS_ONLY, (1, 1, 1, 6, 0, 0)),
            (guest.change(0, 8, 4, 0, LOG), ChangeKind.NOTHING, (0, 0, 0, 0, 0, 0)),
            (guest.change(0), ChangeKind.DELETE, (2, 2, 1, 9, 0, 0)),
        ):
            before = guest.engine.counts.copy()
            assert guest.engine.set_memory_region(change) is kind
            assert done(guest, before) == wanted, kind


def test_an_update_in_phases() -> None:
    with Guest(2) as guest:
        guest.create(0, 0, 8, 0)
        before = guest.engine.counts.copy()
        with guest.engine.update() as update:
            update.stage_all([guest.change(0), guest.change(0, 0, 2, 0), guest.change(1, 2, 2, 20)])
            effects = update.net_effect()
            update.stall(effects)
            update.publish()
            update.release()
            update.settle()
        assert [(effect.start_gfn, effect.end_gfn, effect.action.name) for effect in effects] == [
            (0, 2, "KEEP"),
            (2, 4, "STALL"),
            (4, 8, "STALL"),
        ]
        assert done(guest, before) == (1, 1, 1, 2, 2, 0)


@pytest.mark.parametrize("phases", [("publish", "settle"), ("swap",)])
def test_an_update_that_changes_nothing_swaps_nothing(phases: tuple[str, ...]) -> None:
    with Guest(2) as guest:
        guest.create(0, 0, 8, 0)
        generation = guest.engine.memslots.generation()
        before = guest.engine.counts.copy()
        with guest.engine.update() as update:
            update.stage_all([guest.change(0, 0, 8, 0)])
            for phase in phases:
                getattr(update, phase)()
        assert done(guest, before)[:2] == (0, 0)
        assert guest.engine.memslots.generation() == generation


def test_pauses_and_kicks() -> None:
    with Guest(3) as guest:
        before = guest.engine.counts.copy()
        guest.engine.pause()
        guest.engine.kick()
        guest.engine.resume()
        assert done(guest, before) == (0, 0, 0, 6, 0, 1)


def test_counts_add_up() -> None:
    one, two = Counts(swaps=3, request_ns=5), Counts(swaps=1, acks_ns=2)
    assert (one + two) - two == one
    copy = one.copy()
    copy.swaps += 1
    assert one.swaps == 3
