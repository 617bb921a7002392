"""What KVM itself writes for a guest, steal time and kvmclock, makes no exit: exit_retry cannot carry it out later.

So it is outside the promise. While there is no memory KVM skips it. Afterwards steal time is written again by itself;
kvmclock at KVM's next update of the clock, which KVM_KVMCLOCK_CTRL asks for: new memory holds no clock before that.
"""

from __future__ import annotations

import fcntl
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from guestmem.designs import find
from guestmem.memslots import Change
from kvm_guest import Guest

pytestmark = pytest.mark.compiled_only

SET_MSRS, KVMCLOCK_CTRL = 0x4008AE89, 0xAEAD
MSR_SYSTEM_TIME, MSR_STEAL_TIME = 0x4B564D01, 0x4B564D03
CLOCK, STEAL = 0x2C000, 0x2D000
ENABLED = 1
LIMIT_S = 60.0


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A vCPU that counts in slot 0; KVM writes its clock and steal time to slot 1."""
    with Guest("inc", 1, fetch=False) as made:
        vcpu = made.engine.vm.vcpus[0]
        for number, place in ((MSR_SYSTEM_TIME, CLOCK), (MSR_STEAL_TIME, STEAL)):
            if fcntl.ioctl(vcpu.fd, SET_MSRS, bytearray(struct.pack("<IIIIQ", 1, 0, number, 0, place | ENABLED))) != 1:
                pytest.skip(f"this host's KVM does not know MSR {number:#x}")
        vcpu.set_registers(rbx=0xF000)
        yield made


def written(guest: Guest, place: int) -> bool:
    """Whether KVM has written there: the versions, for the time that was stolen may be none at all."""
    return any(guest.memory[place : place + 16])


def soon(guest: Guest, place: int) -> bool:
    """Whether KVM writes to ``place`` before long; the vCPU leaves and enters meanwhile."""
    end = time.monotonic() + LIMIT_S
    while not written(guest, place) and time.monotonic() < end:
        guest.engine.kick()
        time.sleep(0.001)
    return written(guest, place)


def without(guest: Guest, work: Callable[[], None]) -> None:
    """Do it while slot 1 is gone; it comes back on memory that holds nothing of KVM's."""
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        for place in (CLOCK, STEAL):
            guest.memory[place : place + 64] = bytes(64)
        work()
        assert not written(guest, CLOCK)
        assert not written(guest, STEAL)
        guest.engine.set_memory_region(guest.slot1)


def test_no_exit_and_no_harm_to_the_guest(guest: Guest) -> None:
    apply = find("exit_retry").prepare(guest.engine)
    guest.engine.vm.start()
    for _ in range(200):
        apply(guest.engine, [Change(1), guest.slot1])
        guest.engine.kick()
    guest.engine.vm.stop()
    assert guest.engine.vm.ended == {}
    (counts,) = guest.engine.vm.counts()
    assert counts["mmio_exits"] == counts["retried_fetches"] == 0
    assert counts["exits"] == counts["interrupted"]


def test_what_is_missed_comes_again_or_is_asked_for(guest: Guest) -> None:
    find("exit_retry").prepare(guest.engine)
    guest.engine.vm.start()
    assert soon(guest, CLOCK)
    assert soon(guest, STEAL)

    def work() -> None:
        for _ in range(20):
            guest.engine.kick()
            time.sleep(0.001)

    without(guest, work)
    assert soon(guest, STEAL)
    guest.engine.pause()
    fcntl.ioctl(guest.engine.vm.vcpus[0].fd, KVMCLOCK_CTRL, 0)
    guest.engine.resume()
    assert soon(guest, CLOCK)
    guest.engine.vm.stop()
