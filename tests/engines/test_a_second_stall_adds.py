"""Ranges that an update stalls stay in flux when it stalls more, up to what the engine holds in all."""

from __future__ import annotations

from guestmem.atomics import peek
from guestmem.engines.soft import FLUX_MAX
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.flux import in_flux
from guestmem.memslots import Action, Effect
from soft_guest import Guest


def stalled(guest: Guest, frames: range) -> list[int]:
    """Which of ``frames`` are in flux."""
    flux = peek(guest.engine._vm, int(at.FLUX))
    return [gfn for gfn in frames if in_flux(guest.engine._vm, flux, gfn, True)]


def test_both_lists_are_in_flux_until_the_release() -> None:
    with Guest(1) as guest:
        guest.create(0, 0, 4, 0)
        guest.create(1, 8, 4, 8)
        before = guest.engine.counts.copy()
        with guest.engine.update() as update:
            update.stage_all([guest.change(0), guest.change(1)])
            first, second = update.net_effect()
            update.stall([first])
            assert stalled(guest, range(16)) == [0, 1, 2, 3]
            update.stall([second])
            assert stalled(guest, range(16)) == [0, 1, 2, 3, 8, 9, 10, 11]
            update.publish()
            update.release()
            assert stalled(guest, range(16)) == []
            update.settle()
        assert (guest.engine.counts - before).ranges_in_flux == 2


def test_more_than_flux_names_wait_together() -> None:
    with Guest(1) as guest:
        most = int(FLUX_MAX)
        effects = [Effect(2 * place, 2 * place + 1, Action.STALL, None, None) for place in range(most + 1)]
        with guest.engine.update() as update:
            update.stall(effects[:-2])
            update.stall(effects[-2:-1])
            assert len(stalled(guest, range(2 * most + 2))) == most
            update.stall(effects[-1:])  # one more than there is room for: two of them wait together
            waiting = stalled(guest, range(2 * most + 2))
            assert {effect.start_gfn for effect in effects} < set(waiting)
            assert len(waiting) == most + 2
