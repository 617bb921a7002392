"""Under exit_retry no vCPU loses an operation, whatever its instructions, and none dies; today's way does."""

from __future__ import annotations

import time

import pytest

from chance import until_met
from guestmem.designs import find
from guestmem.engines.kvm import InternalError, Mmio
from guestmem.memslots import Change
from kvm_guest import PROGRAMS, Guest

pytestmark = pytest.mark.compiled_only

OFTEN, MOST_S = 20, 30.0
SAFE = [name for name, program in PROGRAMS.items() if program.decides in {"counter", "private", "wide", "bad"}]


def fell_inside(guest: Guest) -> int:
    return sum(each["retried_answers"] + each["retried_fetches"] for each in guest.engine.vm.counts())


def play(guest: Guest, design: str, seconds: float) -> int:
    """Delete and re-create slot 1 for a while, and often; returns the updates made while all vCPUs were alive.

    Under exit_retry, until an access fell inside: on busy cores that may take some time.
    """
    apply = find(design).prepare(guest.engine)
    guest.engine.vm.start()
    updates = 0
    begun = time.monotonic()
    enough = False
    while not guest.engine.vm.ended and (
        updates <= OFTEN or time.monotonic() < begun + (seconds if enough else MOST_S)
    ):
        apply(guest.engine, [Change(1), guest.slot1])
        updates += 1
        time.sleep(0.0003)
        enough = updates > OFTEN and (design != "exit_retry" or fell_inside(guest) > 0)
    guest.engine.vm.stop()
    return updates


@pytest.mark.parametrize("name", SAFE)
def test_no_operation_is_lost(name: str) -> None:
    with Guest(name) as guest:
        updates = play(guest, "exit_retry", 0.7)
        counts = guest.engine.vm.counts()
        assert guest.engine.vm.ended == {}
        assert updates > OFTEN
        assert -2 <= guest.missing() <= 0, (updates, counts)
        if not fell_inside(guest):
            pytest.skip(f"nothing fell inside in {updates} updates: what was seen shows nothing")
        assert guest.engine.counts.pauses == 0


@pytest.mark.slow
@pytest.mark.night  # by day for 0.7 s each: the test above
@pytest.mark.parametrize("name", SAFE)
def test_no_operation_is_lost_over_many_updates(name: str) -> None:
    with Guest(name) as guest:
        play(guest, "exit_retry", 2.5)
        assert guest.engine.vm.ended == {}
        assert -2 <= guest.missing() <= 0


def test_without_it_the_fetching_vcpu_dies() -> None:
    """Only vCPU 1's code is in the slot; a data access that falls inside ends either by an exit that nobody answers."""

    def dies(_: int) -> bool:
        with Guest("inc") as guest:
            play(guest, "sequential", 1)
            ended = guest.engine.vm.ended
        for exit_ in ended.values():
            assert isinstance(exit_, Mmio) or exit_ == InternalError(1, exit_.ndata, b"")  # type: ignore[union-attr]
        return isinstance(ended.get(1), InternalError)

    until_met(dies, "a fetch that fell inside")


def test_pausing_loses_nothing_either() -> None:
    with Guest("xadd") as guest:
        play(guest, "pause_if_overlap", 0.7)
        assert guest.engine.vm.ended == {}
        assert -2 <= guest.missing() <= 0
        assert guest.engine.counts.pauses > 0
