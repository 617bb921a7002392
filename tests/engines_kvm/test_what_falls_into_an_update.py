"""Each exit that falls into an update, one by one and for certain: what it waits for, and what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from guestmem.atomics import peek, poke, wake_all
from guestmem.engines.kvm import Hlt, InternalError, Io, Mmio, real_mode
from guestmem.engines.kvm import layout as at
from guestmem.errors import GuestmemError
from guestmem.memslots import KVM_MEM_READONLY, Change
from kvm_window import AFTER, DEVICE, END, LIMIT_S, NOWHERE, PRIVATE, REGISTERS, RESTLESS, Window, died

pytestmark = pytest.mark.compiled_only

NOPS = bytes.fromhex("909090")
MOV = bytes.fromhex("b807000000")  # mov eax, 7
STORE = bytes.fromhex("488903")  # mov [rbx], rax
INC = bytes.fromhex("48ff03")  # inc qword ptr [rbx]
LOCK_INC = b"\xf0" + INC
DEVICES = bytes.fromhex("498b07 49894708")  # mov rax, [r15]; mov [r15+8], rax
SPIN = bytes.fromhex("41803c2400 74f9")  # l: cmp byte ptr [r12], 0; je l
SPIN_ON = bytes.fromhex("41807c240800 74f8")  # l: cmp byte ptr [r12+8], 0; je l
JUMP = bytes.fromhex("ffe3")  # jmp rbx
SEGMENTS = bytes.fromhex("b80020 8ed8 8ec0 31f6 31ff baf803")  # ds and es at slot 1, si and di 0, dx 0x3f8
OUTS, INS = SEGMENTS + bytes.fromhex("6ef4"), SEGMENTS + bytes.fromhex("6cf4")  # outsb, insb; hlt


@pytest.fixture
def guest() -> Iterator[Window]:
    with Window() as made:
        made.engine.retry_exits(True)
        yield made


# -- fetches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rip", [RESTLESS + 0x100, RESTLESS - 2, AFTER - 2, RESTLESS + 0xFFE])
def test_a_fetch_is_made_again(guest: Window, rip: int) -> None:
    """From the slot, from a page of it to the next, and across its ends."""
    guest.prepare(MOV, rip=rip)
    native = guest.run()
    guest.prepare(MOV, rip=rip)
    assert guest.run_in_a_hole() == native
    assert native.registers["rax"] == 7
    assert guest.counts()["retried_fetches"] == 1


def start_inside(guest: Window, code: bytes) -> None:
    """The vCPU is in the guest, and waits for [PRIVATE], then for [PRIVATE + 8], before it goes on."""
    guest.prepare(SPIN + code)
    for place in (PRIVATE, PRIVATE + 8):
        guest.poke(place, 0)
    guest.start()
    state = int(at.VCPUS) + int(at.STATE)
    eventually(lambda: peek(guest.vm.words, state) == at.IN_KVM_RUN)
    time.sleep(0.02)


def eventually(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_fetch_of_a_run_that_began_before_the_update_is_made_again(guest: Window) -> None:
    start_inside(guest, JUMP)
    guest.memory[RESTLESS : RESTLESS + len(MOV + END)] = MOV + END
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.poke(PRIVATE, 1)
        guest.until_it_waits()
        assert guest.own[int(at.BEGAN)] & 1 == 0
        guest.engine.set_memory_region(guest.slot1)
    assert died(guest.join())
    assert guest.vcpu.registers()["rip"] == NOWHERE
    assert guest.vcpu.registers()["rax"] == 7


def test_a_jump_into_nothing_dies_at_once_if_no_update_is_in_flight(guest: Window) -> None:
    with guest.engine.exits_held():
        pass  # over before the guest runs
    guest.prepare(NOPS)
    assert died(guest.run().exit)
    assert guest.counts()["retried_fetches"] == 0
    assert guest.vcpu.registers()["rip"] == NOWHERE


def test_and_after_one_more_try_if_one_is(guest: Window) -> None:
    guest.prepare(NOPS)
    with guest.engine.exits_held():
        guest.start()
        guest.until_it_waits()
    assert died(guest.join())
    assert guest.counts()["retried_fetches"] == 1


def test_a_guest_whose_code_does_not_come_back_dies(guest: Window) -> None:
    guest.prepare(MOV, rip=RESTLESS)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.start()
        guest.until_it_waits()
    assert isinstance(guest.join(), InternalError)
    assert guest.vcpu.registers()["rip"] == RESTLESS


# -- the lock ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [INC, LOCK_INC, STORE])
def test_the_guest_goes_on_without_the_lock(guest: Window, code: bytes) -> None:
    """The answer completes one instruction and enters no guest: the next update need not wait for another exit."""
    start_inside(guest, code + SPIN_ON)
    before = guest.word(RESTLESS)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.poke(PRIVATE, 1)
        guest.until_it_waits()
        guest.engine.set_memory_region(guest.slot1)
    eventually(lambda: guest.word(RESTLESS) != before)
    eventually(lambda: peek(guest.vm.words, int(at.ANSWERING)) == 0)
    for _ in range(3):
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            guest.engine.set_memory_region(guest.slot1)
    assert guest.thread.is_alive()
    guest.poke(PRIVATE + 8, 1)
    assert died(guest.join())


def test_a_change_by_itself_waits_for_answers_too(guest: Window) -> None:
    """The map must not change beneath a vCPU that answers from it."""
    poke(guest.vm.words, int(at.ANSWERING), 1)
    change = threading.Thread(target=guest.engine.set_memory_region, args=[Change(1)], daemon=True)
    change.start()
    change.join(0.05)
    assert change.is_alive()
    poke(guest.vm.words, int(at.ANSWERING), 0)
    wake_all(guest.vm.words, int(at.ANSWERING))
    change.join(LIMIT_S)
    assert not change.is_alive()
    assert guest.engine.slot(1) is None


# -- devices -----------------------------------------------------------------------------------------------------------


def test_a_device_waits_for_the_update_and_is_the_callers(guest: Window) -> None:
    guest.prepare(DEVICES)
    with guest.engine.exits_held():
        guest.start()
        guest.until_it_waits()
        assert guest.thread.is_alive()
    read = guest.join()
    assert read == Mmio(DEVICE, 8, is_write=False, data=b"")
    assert isinstance(read, Mmio)
    # The lock has been left: a device model may change memory.
    assert peek(guest.vm.words, int(at.ANSWERING)) == 0
    guest.engine.set_memory_region(Change(1))
    guest.engine.set_memory_region(guest.slot1)
    guest.vcpu.answer(read, b"from afar"[:8])
    assert guest.run().exit == Mmio(DEVICE + 8, 8, is_write=True, data=b"from afa")
    assert died(guest.run().exit)


def test_a_devices_instruction_is_not_completed_within_an_update(guest: Window) -> None:
    guest.prepare(DEVICES)
    read = guest.run().exit
    assert isinstance(read, Mmio)
    guest.vcpu.answer(read, bytes(8))
    with guest.engine.exits_held():
        guest.start()
        guest.until_it_waits()
        assert guest.counts()["mmio_exits"] == 1
    assert guest.join() == Mmio(DEVICE + 8, 8, is_write=True, data=bytes(8))


@pytest.mark.parametrize(("code", "expected"), [(LOCK_INC, 6), (INC, 1001)])
def test_memory_that_comes_where_an_instruction_has_read_a_device(guest: Window, code: bytes, expected: int) -> None:
    """A locked increment starts again, on memory; a plain one is a read before the update and a write after it."""
    guest.prepare(code, rbx=DEVICE)
    read = guest.run().exit
    assert isinstance(read, Mmio)
    guest.poke(DEVICE, 5)
    guest.engine.set_memory_region(guest.change(9, DEVICE, NOWHERE))
    guest.vcpu.answer(read, (1000).to_bytes(8, "little"))
    assert died(guest.run().exit)
    assert guest.word(DEVICE) == expected


# -- read-only slots ---------------------------------------------------------------------------------------------------


def make_readonly(guest: Window) -> Change:
    """Slot 1 is read-only; returns the writable one, on other memory, that is to come."""
    guest.engine.set_memory_region(Change(1))
    guest.engine.set_memory_region(guest.change(1, RESTLESS, AFTER, KVM_MEM_READONLY))
    return Change(1, RESTLESS >> 12, 1, guest.address + PRIVATE)


@pytest.mark.parametrize("code", [INC, STORE, LOCK_INC])
def test_a_write_to_a_readonly_slot_that_went_meanwhile_does_not_land(guest: Window, code: bytes) -> None:
    """What it has read, without an exit, is the old memory: nothing of it may get into the new."""
    guest.prepare(code)
    old = guest.word(RESTLESS)
    shadow = make_readonly(guest)
    guest.poke(PRIVATE, 100)
    with guest.engine.exits_held():
        guest.start()
        guest.until_it_waits()
        guest.engine.set_memory_region(Change(1))
        guest.engine.set_memory_region(shadow)
    written = REGISTERS["rax"] if code == STORE else old + 1
    assert guest.join() == Mmio(RESTLESS, 8, is_write=True, data=written.to_bytes(8, "little"))
    assert died(guest.run().exit)
    assert guest.word(PRIVATE) == 100
    assert guest.word(RESTLESS) == old


def test_a_write_to_a_readonly_slot_is_the_callers(guest: Window) -> None:
    guest.prepare(STORE)
    old = guest.word(RESTLESS)
    make_readonly(guest)
    with guest.engine.exits_held():
        guest.start()
        guest.until_it_waits()
    assert isinstance(guest.join(), Mmio)
    assert died(guest.run().exit)
    assert guest.word(RESTLESS) == old


def test_a_write_after_the_update_lands(guest: Window) -> None:
    guest.prepare(INC)
    shadow = make_readonly(guest)
    guest.poke(PRIVATE, 100)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.engine.set_memory_region(shadow)
    assert died(guest.run().exit)
    assert guest.word(PRIVATE) == 101


def test_a_readonly_slot_that_went_long_ago_is_forgotten(guest: Window) -> None:
    """Though the vCPU has not left KVM_RUN of itself since: its store is into the memory that is there now."""
    make_readonly(guest)
    start_inside(guest, STORE)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.engine.set_memory_region(guest.slot1)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.poke(PRIVATE, 1)
        guest.poke(PRIVATE + 8, 1)
        guest.until_it_waits()
        guest.engine.set_memory_region(guest.slot1)
    assert died(guest.join())
    assert guest.word(RESTLESS) == REGISTERS["rax"]


@pytest.mark.parametrize("others", [3, 200])
def test_any_number_of_readonly_slots_may_go_in_one_update(guest: Window, others: int) -> None:
    guest.prepare(INC)
    old = guest.word(RESTLESS)
    shadow = make_readonly(guest)
    for number in range(others):
        guest.engine.set_memory_region(Change(20 + number, 0x1000 + number, 1, guest.address, KVM_MEM_READONLY))
    guest.poke(PRIVATE, 100)
    with guest.engine.exits_held():
        guest.start()
        guest.until_it_waits()
        guest.engine.set_memory_region(Change(1))
        for number in range(others):
            guest.engine.set_memory_region(Change(20 + number))
        guest.engine.set_memory_region(shadow)
    assert guest.join() == Mmio(RESTLESS, 8, is_write=True, data=(old + 1).to_bytes(8, "little"))
    assert guest.word(PRIVATE) == 100


# -- ports -------------------------------------------------------------------------------------------------------------


def in_real_mode(guest: Window, code: bytes) -> None:
    """Where user mode may not use ports, real mode may."""
    guest.prepare(code, rflags=2)
    guest.vcpu.set_sregs(real_mode(guest.vcpu.sregs()))


def test_outs_reads_the_memory_that_is_there_after_it(guest: Window) -> None:
    """The exit that follows an answer is none of MMIO: it leaves the lock."""
    in_real_mode(guest, OUTS)
    byte = guest.memory[RESTLESS : RESTLESS + 1]
    assert guest.run_in_a_hole().exit == Io(0x3F8, 1, 1, is_write=True, data=byte)
    assert guest.counts()["retried_answers"] == 1
    assert peek(guest.vm.words, int(at.ANSWERING)) == 0
    assert isinstance(guest.run().exit, Hlt)
    assert guest.vcpu.registers()["rsi"] & 0xFFFF == 1


def test_ins_writes_to_it(guest: Window) -> None:
    in_real_mode(guest, INS)
    port = guest.run().exit
    assert isinstance(port, Io)
    guest.vcpu.answer(port, b"\x5a")
    assert isinstance(guest.run_in_a_hole().exit, Hlt)
    assert guest.memory[RESTLESS] == 0x5A
    assert guest.counts()["retried_answers"] == 1
    assert guest.vcpu.registers()["rdi"] & 0xFFFF == 1


# -- stops and pauses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [INC, LOCK_INC, STORE])
def test_a_stop_keeps_the_exit_until_the_update_is_over(guest: Window, code: bytes) -> None:
    guest.prepare(code)
    native = guest.run()
    guest.prepare(code)
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.start()
        guest.until_it_waits()
        guest.vm.stop()
        guest.thread.join(LIMIT_S)
        assert isinstance(guest.ended[0], GuestmemError)
        assert "stopped" in str(guest.ended[0])
        assert isinstance(guest.vcpu.held_exit, Mmio)
        guest.engine.set_memory_region(guest.slot1)
    assert guest.vcpu.held_exit is None, "carried out when the update was over"
    assert guest.run() == native
