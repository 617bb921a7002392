"""With shadow paging KVM emulates writes to frames that once held the guest's tables, though their memory is there.

So the first exit of an instruction could be its write, after a read that the update has made old. The first slot that
goes takes all shadow pages with it; exit_retry makes that change while the vCPUs are stopped, and from then on every
access of the guest's 64-bit user code is native. Seen by KVM's own count of emulated instructions.
"""

from __future__ import annotations

import pytest

from guestmem.engines.kvm import identity_tables, user_mode
from guestmem.memslots import Change
from kvm_window import RESTLESS, TABLES, Window, died, emulated

pytestmark = pytest.mark.compiled_only
OLD_TABLES = RESTLESS + 0x6000
UPPER = OLD_TABLES + 0x2800  # an entry of a table above the last level: KVM protects these from writes
INC = bytes.fromhex("48ff03")  # inc qword ptr [rbx]
NOP = bytes.fromhex("90")


def with_old_tables(guest: Window) -> None:
    """The guest has run on tables in slot 1, and is on others now."""
    guest.prepare(NOP)
    tables = identity_tables(OLD_TABLES, 0x200000)
    guest.memory[OLD_TABLES : OLD_TABLES + len(tables)] = tables
    guest.vcpu.set_sregs(user_mode(guest.vcpu.sregs(), OLD_TABLES))
    assert died(guest.run().exit)
    guest.vcpu.set_sregs(user_mode(guest.vcpu.sregs(), TABLES))


def emulated_by(guest: Window, place: int) -> int:
    """How many instructions KVM emulates for an increment of ``place``, and the jump into nothing."""
    guest.memory[0x1000 : 0x1000 + len(INC) + 3] = INC + bytes.fromhex("41ffe5")
    guest.vcpu.set_registers(rip=0x1000, rbx=place)
    before, word = emulated(guest), guest.word(place)
    assert died(guest.run().exit)
    assert guest.word(place) == word + 1
    return emulated(guest) - before


def test_a_write_to_what_once_was_a_table_is_emulated_until_a_slot_goes() -> None:
    with Window() as guest:
        if guest.vm.host.tdp:
            pytest.skip("with TDP nothing is shadowed")
        guest.prepare(NOP)
        native = emulated_by(guest, RESTLESS)
        with_old_tables(guest)
        assert emulated_by(guest, UPPER) == native + 1
        with_old_tables(guest)
        guest.engine.pause()
        guest.engine.set_memory_region(Change(1))
        guest.engine.set_memory_region(guest.slot1)
        guest.engine.resume()
        assert emulated_by(guest, UPPER) == native


def test_any_slot_will_do() -> None:
    with Window() as guest:
        if guest.vm.host.tdp:
            pytest.skip("with TDP nothing is shadowed")
        guest.prepare(NOP)
        native = emulated_by(guest, RESTLESS)
        with_old_tables(guest)
        guest.engine.set_memory_region(guest.change(9, 0x100000, 0x101000)._replace(userspace_addr=guest.address))
        guest.engine.set_memory_region(Change(9))
        assert emulated_by(guest, UPPER) == native
