"""Each case in which exit_retry is known to harm is refused, with its reason; shown where this kernel can.

What is let through is one mode: 64-bit user code, whose tables and whose ways into its kernel lie outside what changes.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Callable

import pytest

from guestmem.engines.kvm import Host, Mmio, Shutdown, identity_tables, real_mode, safe_for_exit_retry, user_mode
from guestmem.engines.kvm.safety import MEASURED_MODULES
from guestmem.engines.kvm.x86.registers import SEGMENT, X86Ioctl
from guestmem.engines.kvm.zones import Zone
from guestmem.memslots import Change
from kvm_guest import TABLES, Guest
from kvm_window import PRIVATE, RESTLESS, Window, died

pytestmark = pytest.mark.compiled_only

SPIN_AND_READ = bytes.fromhex("41803c2400 74f9 488b03")  # l: cmp byte ptr [r12], 0; je l; mov rax, [rbx]
INT3 = bytes.fromhex("cc")
NOP = bytes.fromhex("90")
STORE = bytes.fromhex("488903")  # mov [rbx], rax
HANDLER_CODE = bytes.fromhex("48cf")  # iretq
CS, SS, TR, LDT = 0, 5, 6, 7
CR0, CR4, EFER = 224, 248, 264


def segment(sregs: bytearray, place: int, **fields: int) -> None:
    names = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")
    values = dict(zip(names, SEGMENT.unpack_from(sregs, SEGMENT.size * place), strict=True)) | fields
    SEGMENT.pack_into(sregs, SEGMENT.size * place, *values.values())


def verdict_of(guest: Window) -> str:
    return str(safe_for_exit_retry(guest.engine, [Change(1), guest.slot1]))


def test_a_user_mode_guest_with_its_tables_elsewhere_is_let_through() -> None:
    with Guest("inc") as guest:
        verdict = safe_for_exit_retry(guest.engine, [Change(1), guest.slot1])
        assert verdict
        assert verdict.design == "exit_retry"
        assert any("crosses a page" in remark for remark in verdict.remarks)
        assert any("whose code one knows" in remark for remark in verdict.remarks)
        assert any("not measured" in each for each in verdict.remarks) == (
            guest.engine.vm.host.module not in MEASURED_MODULES
        )


def test_accesses_that_cross_a_page_are_counted() -> None:
    """What becomes of locked ones: test_what_an_emulation_has_read_it_finds_again.py. A counter tells of them."""
    with Window() as guest:
        guest.engine.retry_exits(True)
        guest.prepare(bytes.fromhex("498902"))  # mov [r10], rax: a locked one may never end, see kvm_instructions
        assert died(guest.run_in_a_hole().exit)
        assert guest.counts()["crossings"] == 1


# -- modes: what is not 64-bit user code -------------------------------------------------------------------------------


def real(sregs: bytearray) -> None:
    sregs[:] = real_mode(bytes(sregs))


def without_paging(sregs: bytearray) -> None:
    struct.pack_into("<Q", sregs, CR0, 0x11)
    struct.pack_into("<Q", sregs, EFER, 0)
    segment(sregs, CS, l=0, db=1)


def compatibility(sregs: bytearray) -> None:
    segment(sregs, CS, l=0, db=1)


def sixteen_bits(sregs: bytearray) -> None:
    segment(sregs, CS, l=0, db=0)


def at_cpl(cpl: int) -> Callable[[bytearray], None]:
    def change(sregs: bytearray) -> None:
        sregs[:] = user_mode(bytes(sregs), TABLES, cpl=cpl)

    return change


MODES = {
    "real mode": (real, "in real mode or without paging"),
    "unpaged": (without_paging, "in real mode or without paging"),
    "compatibility, 32 bits": (compatibility, "in compatibility mode"),
    "compatibility, 16 bits": (sixteen_bits, "in compatibility mode"),
    "CPL 0": (at_cpl(0), "in kernel mode (CPL 0)"),
    "CPL 1": (at_cpl(1), "in kernel mode (CPL 1)"),
    "CPL 2": (at_cpl(2), "in kernel mode (CPL 2)"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_other_mode_is_refused(mode: str) -> None:
    """On every host: elsewhere it may run natively, but was never run."""
    with Window() as guest:
        guest.prepare(NOP)
        assert verdict_of(guest).startswith("exit_retry")
        change, why = MODES[mode]
        sregs = bytearray(guest.vcpu.sregs())
        change(sregs)
        guest.vcpu.set_sregs(bytes(sregs))
        assert verdict_of(guest).startswith(f"pause_if_overlap: vCPU 0 is {why}")


def test_protected_mode_by_what_registers_say() -> None:
    """Paging without long mode: not to be set on this host, whose sregs are read all the same."""
    from guestmem.engines.kvm.x86.vcpu_state import Sregs

    sregs = bytearray(0x138)
    struct.pack_into("<Q", sregs, CR0, 0x80000001)
    assert Sregs(bytes(sregs)).mode == "in 32-bit or 16-bit protected mode"


# -- what makes an instruction more than plain -------------------------------------------------------------------------


def test_single_steps_are_refused() -> None:
    with Window() as guest:
        guest.prepare(NOP, rflags=0x102)
        assert "is single-stepped" in verdict_of(guest)


def test_alignment_checks_are_refused() -> None:
    with Window() as guest:
        guest.prepare(NOP, rflags=1 << 18 | 2)
        assert "checks alignment" in verdict_of(guest)


def test_breakpoints_are_refused() -> None:
    with Window() as guest:
        guest.prepare(NOP)
        registers = struct.pack("<6Q80x", RESTLESS, 0, 0, 0, 0xFFFF0FF0, 0x403)
        fcntl.ioctl(guest.vcpu.fd, 0x4080AEA2, registers)  # KVM_SET_DEBUGREGS
        assert "breakpoints in DR7" in verdict_of(guest)


def test_an_event_that_is_about_to_be_delivered_is_refused() -> None:
    with Window() as guest:
        guest.prepare(NOP)
        events = bytearray(guest.vcpu.events())
        events[0], events[1] = 1, 6  # an injected #UD
        fcntl.ioctl(guest.vcpu.fd, X86Ioctl.SET_VCPU_EVENTS, events)
        assert "has an exception to be delivered" in verdict_of(guest)


@pytest.mark.parametrize(("place", "bit"), [(CR4, 1 << 13), (EFER, 1 << 12)])
def test_what_may_run_nested_guests_is_refused(place: int, bit: int) -> None:
    from guestmem.engines.kvm.x86.vcpu_state import Sregs

    with Window() as guest:
        guest.prepare(NOP)
        sregs = bytearray(guest.vcpu.sregs())
        assert not Sregs(bytes(sregs)).is_hypervisor
        struct.pack_into("<Q", sregs, place, struct.unpack_from("<Q", sregs, place)[0] | bit)
        assert Sregs(bytes(sregs)).is_hypervisor


# -- tables ------------------------------------------------------------------------------------------------------------


def tables_in_slot_1(guest: Window) -> None:
    """The vCPU spins until [PRIVATE] is set, and then reads a page that it has not read before."""
    guest.prepare(SPIN_AND_READ)
    tables = identity_tables(RESTLESS + 0x6000, 0x200000)
    guest.memory[RESTLESS + 0x6000 : RESTLESS + 0x6000 + len(tables)] = tables
    guest.vcpu.set_sregs(user_mode(guest.vcpu.sregs(), RESTLESS + 0x6000))
    guest.poke(PRIVATE, 0)


def test_page_tables_in_what_changes_are_refused() -> None:
    with Window() as guest:
        guest.prepare(SPIN_AND_READ)
        assert verdict_of(guest).startswith("exit_retry")
        tables_in_slot_1(guest)
        verdict = verdict_of(guest)
        assert verdict.startswith("pause_if_overlap")
        assert f"has a page table at {RESTLESS + 0x6000:#x}, which lies in what changes" in verdict
        assert ("may be shut down" in verdict) != guest.vm.host.tdp


def test_tables_that_cannot_be_read_are_refused() -> None:
    with Window() as guest:
        guest.prepare(NOP)
        guest.engine.set_memory_region(Change(9, 0x100, 1, 0x7FFFFFFF0000))
        guest.poke(TABLES + 8, 0x100067)  # another entry of the root
        assert "may have page tables in what changes: the page table at 0x100000 cannot be read" in verdict_of(guest)


def test_with_shadow_paging_a_guest_without_its_tables_is_shut_down() -> None:
    """Within an update or not: the exit is SHUTDOWN, and says nothing of the hole."""
    with Window() as guest:
        if guest.vm.host.tdp:
            pytest.skip("with TDP the hardware walks the guest's tables")
        guest.engine.retry_exits(True)
        tables_in_slot_1(guest)
        guest.start()
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            guest.poke(PRIVATE, 1)
            ended = guest.join()
            guest.engine.set_memory_region(guest.slot1)
        assert isinstance(ended, Shutdown)
    with Window() as guest:
        tables_in_slot_1(guest)
        guest.poke(PRIVATE, 1)
        assert died(guest.run().exit), "with its tables it goes on to the jump into nothing"


# -- event delivery ----------------------------------------------------------------------------------------------------

ELSEWHERE = {"idt": 0x3000, "gdt": 0x2000, "tss": 0x2800, "stack": 0x6000, "ldt": 0x2C00}
IN_SLOT_1 = {"idt": 0x21000, "gdt": 0x22000, "tss": 0x23000, "stack": 0x2A000, "ldt": 0x24000}
SAID = {"idt": "its IDT at 0x21000", "gdt": "its GDT at 0x22000", "tss": "its TSS at 0x23000"}
SAID |= {"stack": "its stack below 0x2a000, which its TSS names,", "ldt": "its LDT at 0x24000"}
HANDLER = 0x7000


def with_a_kernel(guest: Window, code: bytes, ist: bool = False, /, **places: int) -> None:
    """The guest has descriptor tables, a TSS, and a handler of all events that returns."""
    guest.prepare(code)
    at = ELSEWHERE | places
    guest.memory[at["gdt"] : at["gdt"] + 0x80] = bytes(0x80)
    entries = {1: 0x00AF9B000000FFFF, 2: 0x00CF93000000FFFF, 3: 0x00AFFB000000FFFF, 4: 0x00CFF3000000FFFF}
    entries |= {8: 0x67 | (at["tss"] & 0xFFFFFF) << 16 | 0x8B << 40}
    for index, value in entries.items():
        guest.poke(at["gdt"] + 8 * index, value)
    guest.memory[at["tss"] : at["tss"] + 0x68] = bytes(0x68)
    if ist:
        guest.poke(at["tss"] + 36 + 8 * 3, at["stack"])
    else:
        struct.pack_into("<Q", guest.memory, at["tss"] + 4, at["stack"])
    gate = struct.pack("<HHBBHII", HANDLER & 0xFFFF, 8, 0, 0xEE, HANDLER >> 16, 0, 0)
    guest.memory[at["idt"] : at["idt"] + 0x1000] = gate * 256
    guest.memory[HANDLER : HANDLER + len(HANDLER_CODE)] = HANDLER_CODE
    sregs = bytearray(guest.vcpu.sregs())
    struct.pack_into("<QH", sregs, 192, at["gdt"], 0x7F)
    struct.pack_into("<QH", sregs, 208, at["idt"], 0xFFF)
    segment(sregs, CS, selector=0x1B)
    segment(sregs, SS, selector=0x23)
    segment(sregs, TR, base=at["tss"], limit=0x67, selector=0x40, type=11, present=1, s=0, g=0, unusable=0)
    if "ldt" in places:
        segment(sregs, LDT, base=at["ldt"], limit=0x1F, selector=0x28, type=2, present=1, s=0, g=0, unusable=0)
    guest.vcpu.set_sregs(bytes(sregs))


@pytest.mark.parametrize("what", SAID)
def test_what_events_are_delivered_through_is_refused(what: str) -> None:
    with Window() as guest:
        with_a_kernel(guest, INT3)
        assert verdict_of(guest).startswith("exit_retry")
        with_a_kernel(guest, INT3, **{what: IN_SLOT_1[what]})
        assert f"vCPU 0 has {SAID[what]}" in verdict_of(guest)


def test_a_stack_of_the_interrupt_stack_table_is_one_too() -> None:
    with Window() as guest:
        with_a_kernel(guest, INT3, True, stack=RESTLESS + 0x1000)
        assert f"has its stack below {RESTLESS + 0x1000:#x}, which its TSS names," in verdict_of(guest)


@pytest.mark.parametrize("what", ["idt", "gdt", "tss", "stack"])
def test_an_event_without_them_ends_the_guest(what: str) -> None:
    """Why: with its tables elsewhere the event is delivered, within an update, too."""
    with Window() as guest:
        if not guest.vm.host.software:
            pytest.skip(f"{guest.vm.host.module} has the hardware deliver events")
        guest.engine.retry_exits(True)
        with_a_kernel(guest, INT3)
        assert died(guest.run().exit)
        with_a_kernel(guest, INT3, **{what: IN_SLOT_1[what]})
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            guest.start()
            ended = guest.join()
            guest.engine.set_memory_region(guest.slot1)
        assert ended == Shutdown()


# -- zones -------------------------------------------------------------------------------------------------------------


def test_zones_that_kvm_answers_itself_are_refused_until_they_are_taken_back() -> None:
    with Window() as guest:
        guest.prepare(NOP)
        coalesced = struct.pack("<QII", RESTLESS, 0x1000, 0)
        guest.vm.ioctl(0x4010AE67, coalesced)
        assert f"KVM takes stores itself: coalesced MMIO at [{RESTLESS:#x}, 0x21000)" in verdict_of(guest)
        guest.vm.ioctl(0x4010AE68, coalesced)
        assert verdict_of(guest).startswith("exit_retry")
        guest.vm.ioctl(0x4010AE67, struct.pack("<QII", 0x80000, 0x1000, 0))
        assert verdict_of(guest).startswith("exit_retry"), "elsewhere"


@pytest.mark.parametrize(
    ("start", "size", "stays"),
    [
        (RESTLESS, 0x2000, False),
        (RESTLESS, 0x4000, True),
        (RESTLESS - 0x1000, 0x4000, True),
        (RESTLESS + 0x1000, 0x800, False),
        (RESTLESS + 0x1000, 0x1800, True),
        (0x80000, 0x1000, True),
    ],
)
def test_a_coalesced_zone_goes_when_the_kernel_says_so(start: int, size: int, stays: bool) -> None:
    """Where it holds all of what is named. The kernel shows it by a store, which such a zone swallows."""
    with Window() as guest:
        guest.prepare(STORE)
        guest.vm.ioctl(0x4010AE67, struct.pack("<QII", RESTLESS, 0x2000, 0))
        guest.vm.ioctl(0x4010AE68, struct.pack("<QII", start, size, 0))
        assert ("KVM takes stores itself: coalesced MMIO" in verdict_of(guest)) == stays
        guest.engine.set_memory_region(Change(1))
        assert isinstance(guest.vcpu.run(), Mmio) != stays


def test_whoever_took_the_vms_file_may_have_registered_some() -> None:
    with Window() as guest:
        guest.prepare(NOP)
        fcntl.ioctl(guest.vm.fd, 0x4010AE67, struct.pack("<QII", RESTLESS, 0x1000, 0))
        assert "registered through the VM's file by others: unknown" in verdict_of(guest)
        guest.vm.declare_zones([Zone(RESTLESS, RESTLESS + 0x1000, "the VGA window")])
        assert "KVM takes stores itself: the VGA window" in verdict_of(guest)
        guest.vm.declare_zones()
        assert "the VGA window" in verdict_of(guest), "what is known is not forgotten"


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("msr", "value", "why"),
    [
        (0x4B564D02, 0xF001 | 4, "has asynchronous page faults on"),
        (0x4B564D04, RESTLESS + 1, "has the page of PV EOI"),
        (0x40000073, RESTLESS + 1, "has the page of the Hyper-V VP assist"),
    ],
)
def test_memory_that_kvm_writes_to_is_refused(msr: int, value: int, why: str) -> None:
    with Window() as guest:
        guest.prepare(NOP)
        try:
            done = fcntl.ioctl(guest.vcpu.fd, 0x4008AE89, bytearray(struct.pack("<IIIIQ", 1, 0, msr, 0, value)))
        except OSError:
            done = 0
        if done != 1:
            pytest.skip(f"this host's KVM does not take MSR {msr:#x} so")
        assert why in verdict_of(guest)


def test_the_address_space_of_smm_is_refused() -> None:
    with Guest("inc", 1) as guest:
        verdict = safe_for_exit_retry(guest.engine, [Change(1, 0x20, 1, guest.address, as_id=1)])
        assert "the address space of SMM" in str(verdict)


def test_vcpus_that_run_are_judged_too_and_run_on() -> None:
    with Window() as guest:
        tables_in_slot_1(guest)
        guest.start()
        assert not safe_for_exit_retry(guest.engine, [Change(1), guest.slot1])
        assert guest.thread.is_alive()
        guest.poke(PRIVATE, 1)
        assert died(guest.join())


def test_encrypted_guests_are_refused() -> None:
    with Guest("inc", 1) as guest:
        assert "encrypted" in str(safe_for_exit_retry(guest.engine, encrypted=True))


def test_without_the_capability_it_is_refused() -> None:
    with Guest("inc", 1) as guest:
        guest.engine.vm.exits_on_emulation_failure = False
        verdict = safe_for_exit_retry(guest.engine)
        assert not verdict
        assert "KVM_CAP_EXIT_ON_EMULATION_FAILURE" in str(verdict)


def test_hardware_hosts_are_not_claimed() -> None:
    with Guest("inc", 1) as guest:
        guest.engine.vm.host = Host("6.18", "kvm_intel", tdp=True, tdp_mmu=True, mmio_caching=True)
        verdict = safe_for_exit_retry(guest.engine, [Change(1), guest.slot1])
        assert "not measured on kvm_intel" in verdict.remarks


def test_changes_of_flags_alone_take_nothing_away() -> None:
    with Window() as guest:
        tables_in_slot_1(guest)
        assert safe_for_exit_retry(guest.engine, [guest.slot1._replace(flags=1)])
