"""A failed fetch is run again only if an update was in flight: a guest that jumps into nothing dies all the same."""

from __future__ import annotations

import time

import pytest

from chance import until_met
from guestmem.designs import find
from guestmem.engines.kvm import InternalError
from guestmem.memslots import Change
from kvm_guest import Guest

pytestmark = pytest.mark.compiled_only


def test_it_dies_when_no_update_runs() -> None:
    with Guest("jump into nothing", 1) as guest:
        guest.engine.retry_exits(True)
        exit_ = guest.engine.vm.vcpus[0].run()
        assert isinstance(exit_, InternalError)
        assert exit_.suberror == 1
        assert guest.engine.vm.vcpus[0].registers()["rip"] == 0x40000


def test_it_dies_in_the_midst_of_updates() -> None:
    with Guest("jump into nothing", 1) as guest:
        apply = find("exit_retry").prepare(guest.engine)
        guest.engine.vm.start()

        def ended(_: int) -> bool:
            apply(guest.engine, [Change(1), guest.slot1])
            time.sleep(0.0005)
            return bool(guest.engine.vm.ended)

        until_met(ended, "a try of the guest's with no update in flight")
        guest.engine.vm.stop()
        assert isinstance(guest.engine.vm.ended[0], InternalError)
