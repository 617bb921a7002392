"""Each case in which exit_retry is not safe is found by the check, or counted, and shown where this kernel can."""

from __future__ import annotations

import time

import pytest

from guestmem.designs import find
from guestmem.engines.kvm import Host, Shutdown, identity_tables, real_mode, safe_for_exit_retry, user_mode
from guestmem.engines.kvm.safety import MEASURED_MODULES
from guestmem.memslots import Change
from kvm_guest import TABLES, Guest
from kvm_window import PRIVATE, RESTLESS, Window, died

pytestmark = pytest.mark.compiled_only

SPIN_AND_READ = bytes.fromhex("41803c2400 74f9 488b03")  # l: cmp byte ptr [r12], 0; je l; mov rax, [rbx]
TRIES = 20


def retry(guest: Guest, seconds: float) -> None:
    apply = find("exit_retry").prepare(guest.engine)
    guest.engine.vm.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not guest.engine.vm.ended:
        apply(guest.engine, [Change(1), guest.slot1])
        time.sleep(0.0002)
    guest.engine.vm.stop()


def test_a_user_mode_guest_with_its_tables_elsewhere_is_safe() -> None:
    with Guest("inc") as guest:
        verdict = safe_for_exit_retry(guest.engine, [Change(1), guest.slot1])
        assert verdict
        assert verdict.design == "exit_retry"
        assert any("crosses a page" in remark for remark in verdict.remarks)
        assert any("lzcnt and tzcnt" in remark for remark in verdict.remarks)
        assert any("not measured" in each for each in verdict.remarks) == (
            guest.engine.vm.host.module not in MEASURED_MODULES
        )


def test_locked_operations_that_cross_a_page_are_counted() -> None:
    """What becomes of them: test_what_an_emulation_has_read_it_finds_again.py. A counter tells of them."""
    with Guest("page crossing") as guest:
        for _ in range(TRIES):
            retry(guest, 0.3)
            if any(each["crossings"] for each in guest.engine.vm.counts()):
                return
        pytest.fail(f"none met a hole: {guest.engine.vm.counts()}")


def test_a_guest_in_real_mode_is_refused_where_the_host_emulates_it() -> None:
    with Guest("inc", 1) as guest:
        vcpu = guest.engine.vm.vcpus[0]
        vcpu.set_sregs(real_mode(guest.engine.vm.vcpus[0].sregs()))
        verdict = safe_for_exit_retry(guest.engine)
        assert bool(verdict) == (not guest.engine.vm.host.software)
        if not verdict:
            assert verdict.design == "pause_if_overlap"
            assert "real mode" in str(verdict)


def test_kernel_mode_is_refused_where_the_host_is_software() -> None:
    with Guest("inc", 1) as guest:
        vcpu = guest.engine.vm.vcpus[0]
        vcpu.set_sregs(user_mode(vcpu.sregs(), TABLES, cpl=0))
        assert bool(safe_for_exit_retry(guest.engine)) == (not guest.engine.vm.host.software)


def tables_in_slot_1(guest: Window) -> None:
    """The vCPU spins until [PRIVATE] is set, and then reads a page that it has not read before."""
    guest.prepare(SPIN_AND_READ)
    tables = identity_tables(RESTLESS + 0x6000, 0x200000)
    guest.memory[RESTLESS + 0x6000 : RESTLESS + 0x6000 + len(tables)] = tables
    guest.vcpu.set_sregs(user_mode(guest.vcpu.sregs(), RESTLESS + 0x6000))
    guest.poke(PRIVATE, 0)


def test_page_tables_in_what_changes_are_refused() -> None:
    with Window() as guest:
        changes = [Change(1), guest.slot1]
        guest.prepare(SPIN_AND_READ)
        assert safe_for_exit_retry(guest.engine, changes)
        tables_in_slot_1(guest)
        verdict = safe_for_exit_retry(guest.engine, changes)
        assert not verdict
        assert verdict.design == "pause_if_overlap"
        assert f"a page table at {RESTLESS + 0x6000:#x} lies in what changes" in str(verdict)
        assert ("may be shut down" in str(verdict)) != guest.vm.host.tdp


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
