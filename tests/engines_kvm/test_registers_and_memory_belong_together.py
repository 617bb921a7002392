"""In a pause, or after a stop, a store is behind rip and in memory, or neither: what exits hold is carried out first.

KVM puts rip past a store before it hands the store out, so a snapshot in between would lose it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from chance import until_met
from guestmem.atomics import peek
from guestmem.engines.kvm import Mmio
from guestmem.engines.kvm import layout as at
from guestmem.errors import GuestmemError
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, Change
from kvm_window import AFTER, CODE, LIMIT_S, REGISTERS, RESTLESS, Window, died

pytestmark = pytest.mark.compiled_only
STORE = bytes.fromhex("488903")  # mov [rbx], rax
INC = bytes.fromhex("48ff03")  # inc qword ptr [rbx]
FAR_STORE = bytes.fromhex("498907")  # mov [r15], rax: a device
COUNT = bytes.fromhex("48ffc0 488903 ebf8")  # l: inc rax; mov [rbx], rax; jmp l


@pytest.fixture
def guest() -> Iterator[Window]:
    with Window() as made:
        made.engine.retry_exits(True)
        made.slot1 = made.change(1, RESTLESS, AFTER, KVM_MEM_LOG_DIRTY_PAGES)
        made.engine.set_memory_region(Change(1))
        made.engine.set_memory_region(made.slot1)
        yield made


def is_whole(guest: Window) -> bool:
    """The store has not begun, or is in memory and in the log."""
    begun = guest.vcpu.registers()["rip"] != CODE
    logged = bool(guest.vm.get_dirty_log(1, 16)[0] & 1)
    return begun == logged == (guest.word(RESTLESS) == REGISTERS["rax"])


def test_a_pause_within_the_update(guest: Window) -> None:
    """By the updater itself: done when both have returned. Until then nobody looks at registers."""
    guest.prepare(STORE)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.start()
        guest.until_it_waits()
        guest.engine.set_memory_region(guest.slot1)
        guest.engine.pause()
        with pytest.raises(GuestmemError, match="vCPU 0: it has met what an update changes"):
            guest.vcpu.registers()
        with pytest.raises(GuestmemError, match="vCPU 0: it has met what an update changes"):
            guest.vcpu.set_registers(rip=CODE)
    assert is_whole(guest)
    assert guest.vcpu.registers()["rip"] == CODE + len(STORE)
    guest.vcpu.set_registers(rip=CODE)  # is not ignored
    guest.engine.resume()
    assert died(guest.join())


@pytest.mark.parametrize("code", [STORE, INC])
def test_a_pause_of_another_thread_waits_for_the_updates_end(guest: Window, code: bytes) -> None:
    guest.prepare(code)
    guest.run()
    after = guest.word(RESTLESS)
    guest.prepare(code)
    returned = threading.Event()

    def pause() -> None:
        guest.engine.pause()
        returned.set()

    thread = threading.Thread(target=pause)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.start()
        guest.until_it_waits()
        thread.start()
        end = time.monotonic() + LIMIT_S
        while peek(guest.vm.words, int(at.PAUSED)) == 0:  # else the vCPU may have ended before
            assert time.monotonic() < end
            time.sleep(0.0005)
        assert not returned.wait(0.05)
        guest.engine.set_memory_region(guest.slot1)
    assert returned.wait(LIMIT_S)
    assert guest.word(RESTLESS) == after
    assert guest.vcpu.registers()["rip"] == CODE + len(code)
    thread.join()
    guest.engine.resume()
    assert died(guest.join())


def test_a_stop_within_the_update(guest: Window) -> None:
    guest.prepare(STORE)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.start()
        guest.until_it_waits()
        guest.vm.stop()
        guest.thread.join(LIMIT_S)
        with pytest.raises(GuestmemError, match="exit is not answered yet"):
            guest.vcpu.registers()
        guest.engine.set_memory_region(guest.slot1)
    assert is_whole(guest)
    assert guest.vcpu.registers()["rip"] == CODE + len(STORE)


def test_a_devices_exit_is_handed_out_with_the_registers(guest: Window) -> None:
    guest.prepare(FAR_STORE)
    with guest.engine.exits_held():
        guest.start()
        guest.until_it_waits()
        guest.vm.stop()
        guest.thread.join(LIMIT_S)
    held = guest.vcpu.held_exit
    assert isinstance(held, Mmio)
    assert held.data == REGISTERS["rax"].to_bytes(8, "little")
    assert guest.vcpu.registers()["rip"] == CODE + len(FAR_STORE)
    with pytest.raises(GuestmemError, match=r"or after end_instruction\(\)"):
        guest.vcpu.set_registers(rip=CODE)
    assert guest.vcpu.run() == held


def test_looks_at_a_guest_that_stores_all_the_time(guest: Window) -> None:
    """It counts in rax and stores: memory has what rax had at the last store that is behind rip."""
    guest.prepare(COUNT, rax=0)
    guest.poke(RESTLESS, 0)
    guest.start()

    def look(number: int) -> bool:
        """Every fourth time the guest has met the hole for certain; else whatever it is at."""
        within = number % 2 == 1
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            if number % 4 == 3:
                guest.until_it_waits()
            if within:
                guest.engine.pause()
            guest.engine.set_memory_region(guest.slot1)
        if not within:
            guest.engine.pause()
        registers, stored = guest.vcpu.registers(), guest.word(RESTLESS)
        stored_already = registers["rip"] != CODE + 3
        assert stored == registers["rax"] - (not stored_already), number
        guest.engine.resume()
        return number >= 100 and guest.own[int(at.RETRIED_ANSWERS)] > 0

    until_met(look, "an exit inside an update that was answered")
    guest.vm.stop()
