"""After pause() has returned no vCPU touches memory until the last resume(), whatever it did when it came."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from guestmem.atomics import peek
from guestmem.engines import Access
from guestmem.engines.soft import layout as at
from guestmem.errors import GuestmemError
from soft_guest import Guest, until

WRITES = Access(writes=1, fetches=0)


def running(vcpus: int, **options: int) -> Guest:
    guest = Guest(vcpus, access=WRITES, **options)
    guest.create(0, 0, 8, 0)
    guest.run(guest.same({gfn: gfn for gfn in range(8)}))
    return guest


def stands_still(guest: Guest) -> bool:
    before = guest.written()
    guest.rest()
    return guest.written() == before


@pytest.mark.parametrize("vcpus", [1, 2, 4, 8])
def test_counters_stand_still_until_resume(vcpus: int, sized: Callable[[int, int], int]) -> None:
    with running(vcpus) as guest:
        for _ in range(sized(20, 3)):
            guest.engine.pause()
            assert [guest.mode(vcpu) for vcpu in range(vcpus)].count(int(at.IN_HOST)) == 0
            assert stands_still(guest)
            guest.engine.resume()
            guest.all_move()
        guest.engine.stop()
        assert guest.total("writes") == guest.written()


def test_pauses_nest() -> None:
    with running(2) as guest:
        guest.engine.pause()
        guest.engine.pause()
        guest.engine.resume()
        assert stands_still(guest)
        guest.engine.pause()
        guest.engine.resume()
        assert stands_still(guest)
        guest.engine.resume()
        guest.all_move()


def test_pauses_of_two_threads_nest(sized: Callable[[int, int], int]) -> None:
    rounds = sized(200, 4)
    moved: list[int] = []

    def pauses(guest: Guest) -> None:
        for _ in range(rounds):
            guest.engine.pause()
            moved.append(-guest.written() + guest.written())
            guest.engine.resume()

    with running(2) as guest:
        others = [threading.Thread(target=pauses, args=(guest,), daemon=True) for _ in range(2)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join(100)
            assert not thread.is_alive()
        assert moved == [0] * 2 * rounds
        guest.all_move()


def test_pause_while_vcpus_stall_in_flux() -> None:
    with running(2) as guest:
        guest.engine.mark([(0, 8, int(at.STALLS_ALL))])
        guest.engine.flush(wait=True)
        until(lambda: guest.total("flux_stalls") == 2, "both stall")
        guest.engine.pause()
        guest.engine.release()  # they wake, and must not go on
        assert stands_still(guest)
        guest.engine.resume()
        guest.all_move()


def test_pause_while_vcpus_wait_for_a_core() -> None:
    with running(6, cores=1) as guest:
        for _ in range(5):
            guest.engine.pause()
            assert stands_still(guest)
            guest.engine.resume()
            guest.moves(0)
        guest.all_move()


def test_pause_waits_for_a_vcpu_in_the_host() -> None:
    """A pause, unlike a flush, waits until the slow vCPU has left its read-side section."""
    with running(2, slow_vcpu_ns=50_000_000) as guest:
        for _ in range(3):
            until(lambda: guest.mode(0) == int(at.IN_HOST), "the slow vCPU in the host")
            guest.engine.pause()
            assert guest.engine.srcu.inside() == []
            assert stands_still(guest)
            guest.engine.resume()


def test_resume_without_a_pause_is_refused() -> None:
    with running(1) as guest:
        with pytest.raises(GuestmemError, match="no pause is in force"):
            guest.engine.resume()
        guest.all_move()


def test_what_an_interrupt_leaves_of_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    from guestmem.engines.soft import engine as module

    def interrupted(*_words: object) -> int:
        raise KeyboardInterrupt

    with running(2) as guest:
        with monkeypatch.context() as patch:
            patch.setattr(module, "wait_until_outside", interrupted)
            with pytest.raises(KeyboardInterrupt):
                guest.engine.pause()
        assert peek(guest.engine._vm, int(at.PAUSED)) == 0
        guest.all_move()


def rounds_of_pause(guest: Guest, rounds: int, rng: random.Random) -> None:
    """Pauses, nested ones, kicks and flushes in random order; memory is looked at within each pause."""
    for number in range(rounds):
        guest.engine.pause()
        before = guest.written()
        if rng.random() < 0.2:
            guest.engine.flush(wait=True)
        if rng.random() < 0.2:
            guest.engine.pause()
            guest.engine.resume()
        assert guest.written() == before, f"round {number}"
        guest.engine.resume()
        if rng.random() < 0.3:
            guest.engine.kick()
    assert peek(guest.engine._vm, int(at.WAITING)) == peek(guest.engine._vm, int(at.PAUSED)) == 0
    guest.all_move()


def test_rounds_of_pause_lose_no_acknowledgement(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    with running(4) as guest:
        rounds_of_pause(guest, sized(300, 6), rng)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [2, 4])
def test_thousands_of_rounds_lose_no_acknowledgement(
    cores: int, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    with running(4, cores=cores) as guest:
        rounds_of_pause(guest, sized(5_000, 20), rng)
