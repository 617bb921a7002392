"""What KVM's emulator carries out otherwise than the processor is not answered: the vCPU stops, or it runs natively.

Which is which is told from its bytes: ``test_what_is_on_the_list.py``. All instructions: ``test_every_instruction.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from chance import until_met
from guestmem.engines.kvm import Exit, Shutdown
from guestmem.engines.kvm import layout as at
from guestmem.errors import GuestmemError
from guestmem.memslots import Change
from kvm_instructions import TAKEN_FOR_OTHERS
from kvm_window import AFTER, CODE, LIMIT_S, PRIVATE, RESTLESS, State, Window, died

pytestmark = pytest.mark.compiled_only
FAR_CALL = bytes.fromhex("41ff1c24")  # call far [r12]: m16:32
FAR_CALL_64 = bytes.fromhex("49ff1c24")  # rex.w call far [r12]: m16:64
GDT, TARGET = 0x2000, 0x7000
RUN_AGAIN = TAKEN_FOR_OTHERS | {"popf": "9d", "popfw": "669d", "movbe rax, [rbx]": "480f38f003"}


def stopped_by(guest: Window) -> str:
    """Run it into the hole; the error that its vCPU ends with."""
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.start()
        guest.until_it_waits()
        guest.engine.set_memory_region(guest.slot1)
    guest.thread.join(LIMIT_S)
    (ended,) = guest.ended
    assert isinstance(ended, GuestmemError), ended
    assert guest.counts()["refused"] >= 1  # a pause tries what is kept again
    with guest.engine.exits_held():  # nobody has kept the lock
        pass
    return str(ended)


@pytest.mark.parametrize("code", [FAR_CALL, FAR_CALL_64])
def test_a_far_call_stops_the_vcpu(code: bytes) -> None:
    """Its stack is in what changes, its operand elsewhere."""
    with Window() as guest:
        guest.engine.retry_exits(True)

        def prepare() -> None:
            guest.prepare(code)
            for index, value in {3: 0x00AFFB000000FFFF, 4: 0x00CFF3000000FFFF}.items():
                guest.poke(GDT + 8 * index, value)
            pointer = struct.pack("<QH" if code == FAR_CALL_64 else "<IH", TARGET, 0x1B)
            guest.memory[PRIVATE : PRIVATE + len(pointer)] = pointer
            guest.memory[TARGET : TARGET + 3] = bytes.fromhex("41ffe5")
            sregs = bytearray(guest.vcpu.sregs())
            struct.pack_into("<QH", sregs, 192, GDT, 0x7F)
            guest.vcpu.set_sregs(bytes(sregs))

        prepare()
        if not died(guest.run().exit) or guest.vcpu.registers()["rsp"] == RESTLESS + 0xA000:
            pytest.skip("this host runs no far call")
        prepare()
        assert "a store by the one before rip" in stopped_by(guest)


@pytest.mark.parametrize("assembly", RUN_AGAIN)
def test_loads_into_registers_are_undone_and_run_by_the_processor(assembly: str) -> None:
    """Across a page, too, where KVM hands out two fragments."""
    for place in (RESTLESS, RESTLESS + 0x2FFE):
        with Window() as guest:
            guest.engine.retry_exits(True)
            registers = {"rbx": place, "rsp": place, "rax": 0}
            guest.prepare(bytes.fromhex(RUN_AGAIN[assembly]), **registers)
            guest.poke(place, 0x8D7)  # as flags: all that the guest may set but TF, DF
            native = guest.run()
            assert died(native.exit)
            guest.prepare(bytes.fromhex(RUN_AGAIN[assembly]), **registers)
            guest.poke(place, 0x8D7)
            assert guest.run_in_a_hole() == native
            assert guest.counts()["again"] == 1


def test_of_which_a_part_is_a_devices_stops_the_vcpu() -> None:
    """A device that was read cannot be asked again."""
    with Window() as guest:
        guest.engine.retry_exits(True)
        guest.engine.set_memory_region(Change(2))
        guest.prepare(bytes.fromhex("f3480fbc03"), rbx=AFTER - 3)
        assert "a load by the one at rip 0x1000" in stopped_by(guest)


def test_the_message_has_the_bytes() -> None:
    with Window() as guest:
        guest.engine.retry_exits(True)
        guest.prepare(bytes.fromhex("9c"))
        assert "where the bytes are" in stopped_by(guest)


def test_code_that_cannot_be_fetched_stops_the_vcpu() -> None:
    """Nothing is known of it: its page is in no slot any more when the exit is looked at."""
    with Window() as guest:
        guest.engine.retry_exits(True)
        code = RESTLESS + CODE
        guest.prepare(bytes.fromhex("488b03"), rip=code, rbx=AFTER)
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(2))
            guest.start()
            guest.until_it_waits()
            guest.engine.set_memory_region(Change(1))
            guest.engine.set_memory_region(guest.change(2, AFTER, 0x38000))
        guest.thread.join(LIMIT_S)
        (ended,) = guest.ended
        assert isinstance(ended, GuestmemError), ended
        assert "a load by the one at rip" in str(ended)


def test_a_first_exit_that_is_the_write_of_an_increment_is_refused_and_counted() -> None:
    """Its read was emulated on what was there before (a page that KVM shadows). Here: the bytes before rip say so."""
    with Window() as guest:
        guest.engine.retry_exits(True)
        guest.prepare(bytes.fromhex("488903"))  # mov [rbx], rax; when it has left, its bytes become those of inc
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            guest.start()
            guest.until_it_waits()
            guest.memory[CODE : CODE + 3] = bytes.fromhex("48ff03")
            guest.engine.set_memory_region(guest.slot1)
        guest.thread.join(LIMIT_S)
        assert isinstance(guest.ended[0], GuestmemError)
        assert guest.counts()["writes_first"] >= 1
        assert int(guest.own[int(at.KNOWN)]) == 0


@pytest.mark.parametrize("code", ["448c2b", "4c8c03"])
def test_a_store_of_a_segment_register_with_rex_r_ends_in_ud(code: str) -> None:
    """The processor ignores the bit; the emulator knows no such register. No exit tells of it, so nobody can refuse."""
    with Window() as guest:
        guest.engine.retry_exits(True)
        guest.prepare(bytes.fromhex(code))
        assert died(guest.run().exit)
        guest.prepare(bytes.fromhex(code))
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            guest.start()
            guest.thread.join(LIMIT_S)  # it is not held up
            guest.engine.set_memory_region(guest.slot1)
        assert guest.ended == [Shutdown()], "without an IDT"
        assert not guest.counts()["refused"]


def test_a_stack_pointer_that_is_no_address_ends_the_guest() -> None:
    """Natively kvm_pvm runs on until rsp is used; an exit in between it does not come back from.

    An interrupt of the host's is an exit, too: should one come in between, the guest ends natively as well.
    """

    def ends(run: Callable[[Window], State], value: int) -> Exit:
        with Window() as guest:
            guest.engine.retry_exits(True)
            guest.prepare(bytes.fromhex("488b23"))  # mov rsp, [rbx]
            guest.poke(RESTLESS, value)
            return run(guest).exit

    def runs_on(_: int) -> bool:
        natively = ends(Window.run, 0x123456789ABCDEF0)
        assert died(natively) or natively == Shutdown()
        return died(natively)

    for run in (Window.run, Window.run_in_a_hole):
        assert died(ends(run, RESTLESS + 0x1000))
    until_met(runs_on, "a native run without an interrupt in between")
    assert ends(Window.run_in_a_hole, 0x123456789ABCDEF0) == Shutdown()
