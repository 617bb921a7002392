"""In a pause no vCPU runs; a kick makes each leave once; stopping ends paused ones; nothing of it is Python's."""

from __future__ import annotations

import time

import pytest

from chance import until_met
from guestmem.atomics import peek
from guestmem.engines.kvm import layout as at
from guestmem.errors import GuestmemError
from kvm_guest import Guest

pytestmark = pytest.mark.compiled_only


def counts_on(guest: Guest) -> None:
    """Wait until the guest has counted, from now on: on busy cores it may have to wait for its turn."""
    before = guest.word(0x20000)

    def counted(_: int) -> bool:
        time.sleep(0.0005)
        return guest.word(0x20000) != before

    until_met(counted, "a guest that counts")


def all_in_the_guest(guest: Guest) -> None:
    """Wait until each vCPU is about to call KVM_RUN, or in it: a kick reaches it from there on."""
    words = guest.engine.vm.words
    states = [int(at.VCPUS) + int(at.VCPU) * vcpu.index + int(at.STATE) for vcpu in guest.engine.vm.vcpus]

    def there(_: int) -> bool:
        time.sleep(0.0005)
        return all(peek(words, state) == at.IN_KVM_RUN for state in states)

    until_met(there, "all vCPUs in the guest at once")


def test_nobody_runs_in_a_pause() -> None:
    with Guest("inc") as guest:
        guest.engine.vm.start()
        counts_on(guest)
        for _ in range(50):
            guest.engine.pause()
            before = guest.word(0x20000)
            time.sleep(0.001)
            assert guest.word(0x20000) == before
            guest.engine.resume()
            time.sleep(0.0005)
        counts_on(guest)


def test_pauses_nest() -> None:
    with Guest("inc") as guest:
        guest.engine.vm.start()
        guest.engine.pause()
        guest.engine.pause()
        guest.engine.resume()
        before = guest.word(0x20000)
        time.sleep(0.01)
        assert guest.word(0x20000) == before
        guest.engine.resume()
        counts_on(guest)


def test_a_kick_makes_each_vcpu_leave_once() -> None:
    with Guest("inc") as guest:
        guest.engine.vm.start()
        all_in_the_guest(guest)
        for _ in range(100):
            guest.engine.kick()
        guest.engine.vm.stop()
        counts = guest.engine.vm.counts()
        assert all(0 < each["interrupted"] <= 102 for each in counts), counts


def test_stopping_ends_paused_vcpus_and_they_can_start_again() -> None:
    with Guest("inc") as guest:
        guest.engine.vm.start()
        guest.engine.pause()
        guest.engine.vm.stop()
        assert guest.engine.vm.running == 0
        guest.engine.resume()
        guest.engine.vm.start()
        with pytest.raises(GuestmemError, match="running already"):
            guest.engine.vm.start()
        time.sleep(0.05)
        guest.engine.vm.stop()
        assert -2 <= guest.missing() <= 0
