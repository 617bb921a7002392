"""stop() returns in bounded time whatever the vCPUs are doing: running, paused, stalled, waiting, slow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem import atomics
from guestmem.compiled import Words
from guestmem.engines import Access, Load
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.requests import pause_all
from soft_guest import Guest, until


def runs(guest: Guest) -> None:
    del guest


def is_paused(guest: Guest) -> None:
    guest.engine.pause()


def is_paused_twice(guest: Guest) -> None:
    guest.engine.pause()
    guest.engine.pause()


def is_about_to_pause(guest: Guest) -> None:
    pause_all(guest.engine._vm)


def stalls(guest: Guest) -> None:
    guest.engine.mark([(0, 8, int(at.STALLS_ALL))])
    guest.engine.flush(wait=True)
    until(lambda: guest.total("flux_stalls") >= guest.engine.vcpus, "all stall")


def is_about_to_stall(guest: Guest) -> None:
    guest.engine.mark([(0, 8, int(at.STALLS_ALL))])
    guest.engine.flush(wait=False)


def meets_invalid(guest: Guest) -> None:
    update = guest.engine.memslots.update()
    update.invalidate(0)
    update.publish()
    guest.engine.flush(wait=True)
    until(lambda: guest.total("invalid_retries") >= guest.engine.vcpus, "all retry")


STATES = (runs, is_paused, is_paused_twice, is_about_to_pause, stalls, is_about_to_stall, meets_invalid)


@pytest.mark.parametrize("options", [{}, {"cores": 1}, {"slow_vcpu_ns": 20_000_000}], ids=["", "one-core", "slow-vcpu"])
@pytest.mark.parametrize("state", STATES)
def test_stop_ends(state: Callable[[Guest], None], options: dict[str, int]) -> None:
    with Guest(4, access=Access(), **options) as guest:
        guest.create(0, 0, 8, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(8)}))
        state(guest)
        guest.engine.stop()
        assert all(guest.mode(vcpu) == int(at.OUTSIDE) for vcpu in range(4))
        assert guest.engine.srcu.inside() == []


def test_stop_ends_though_its_first_wake_comes_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that looked at STOP just before it was set falls asleep just after the wake."""
    from guestmem.engines.soft import vcpu_threads as module

    early: list[int] = []

    def wake_all(words: Words, index: int) -> None:
        if len(early) < 4:
            early.append(index)
        else:
            atomics.wake_all(words, index)

    for state in (is_paused, stalls):
        with Guest(2, access=Access()) as guest:
            guest.create(0, 0, 8, 0)
            guest.run(guest.same({gfn: gfn for gfn in range(8)}))
            state(guest)
            until(lambda guest=guest: all(int(mine[int(at.STALL_BEGUN)]) for mine in guest.engine._own), "all sleep")  # type: ignore[misc]
            guest.rest()  # it is written down just before
            early.clear()
            with monkeypatch.context() as patch:
                patch.setattr(module, "wake_all", wake_all)
                guest.engine.stop()
            assert len(early) == 4


def test_vcpus_start_again_after_each_state() -> None:
    """What a stop cut short is no stall of the next run."""
    with Guest(2, access=Access(writes=1, fetches=0)) as guest:
        guest.create(0, 0, 8, 0)
        ends: dict[Callable[[Guest], None], Callable[[Guest], None]]
        ends = {runs: runs, is_paused: lambda each: each.engine.resume(), stalls: lambda each: each.engine.release()}
        for state, undo in ends.items():
            guest.engine.start()
            guest.engine.set_load(Load(guest.same({gfn: gfn for gfn in range(8)})))
            guest.all_move()
            state(guest)
            guest.engine.stop()
            undo(guest)
            assert all(int(mine[int(at.STALL_BEGUN)]) == 0 for mine in guest.engine._own)
            before = guest.written()
            guest.rest()
            assert guest.written() == before == guest.total("writes")


def test_stop_without_start_and_twice() -> None:
    with Guest(1) as guest:
        guest.engine.stop()
        guest.engine.start()
        guest.engine.stop()
        guest.engine.stop()
