"""On the kernel a transaction stops vCPUs where it must; exit_retry is asked for by name, and judged every time."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time

import pytest

from guestmem.atomics import peek
from guestmem.engines.kvm import Cap, real_mode
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.device import unusable
from guestmem.engines.kvm.vm_file import VmFile
from guestmem.errors import MemslotError, UnsafeError, UsageError
from guestmem.vm import Shutdown, Transaction, Vm

pytestmark = [pytest.mark.skipif(bool(unusable()), reason=unusable()), pytest.mark.compiled_only]
PAGE = 0x1000
LIMIT_S = 60.0
CODE, TABLES, DATA = 1 << 20, (1 << 20) + PAGE, 8 << 20
READ_FOR_EVER = bytes.fromhex("b80020 8ed8 a10000 ebfb")  # mov ax, 0x2000; mov ds, ax; l: mov ax, [0]; jmp l
STORE = bytes.fromhex("48c7042500008000 2a000000 f4")  # mov qword ptr [DATA], 42; hlt, which user mode may not


def long_mode(vm: Vm) -> None:
    vm.memory.create(0, gpa=CODE, size=64 * PAGE)
    vm.memory.create(1, gpa=DATA, size=4 * PAGE)
    vm.vcpus[0].load_code(STORE, CODE, mode="long", tables=TABLES)


def replace(vm: Vm, slot: int, design: str = "", unsafe: str = "refuse") -> Transaction:
    """Delete a slot and create it again, on the same memory."""
    old = vm.memory[slot]
    with vm.memory.transaction(design=design, unsafe=unsafe) as change:
        host = change.delete(slot)
        change.create(slot, gpa=old.base_gfn << 12, size=old.npages << 12, host=host)
    return change


def test_unless_asked_vcpus_are_stopped_for_an_overlap() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        assert vm.design == "pause_if_overlap"
        done = replace(vm, 1)
        assert (done.design, vm.engine.counts.pauses) == ("pause_if_overlap", 1)
        assert done.why == vm.design_why
        with vm.memory.transaction() as change:
            change.delete(1)
        assert (change.design, vm.engine.counts.pauses) == ("pause_if_overlap", 1), "nothing overlaps"


def test_exit_retry_by_name_where_nothing_speaks_against_it() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        done = replace(vm, 1, "exit_retry")
        assert done.design == "exit_retry"
        assert done.why.startswith("exit_retry: no condition of exit_retry is violated")
        assert "whose code one knows" in done.why, "what no look can find is said, too"
        assert vm.design == "pause_if_overlap", "the next transaction is another"


def test_it_is_refused_where_it_is_known_to_harm_and_nothing_has_changed() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        before = list(vm.memory)
        with pytest.raises(UnsafeError, match="a page table at 0x101000, which lies in what changes") as caught:
            replace(vm, 0, "exit_retry")
        assert "\n" not in str(caught.value)
        assert list(vm.memory) == vm.engine.slots() == before
        assert replace(vm, 1, "exit_retry").design == "exit_retry", "each transaction is judged by itself"


def test_or_vcpus_are_stopped_if_that_is_asked_for() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        done = replace(vm, 0, "exit_retry", "pause")
        assert done.design == "pause_if_overlap"
        assert done.why.startswith(f"pause_if_overlap: vCPU 0 has a page table at {TABLES:#x}")
        assert replace(vm, 1, "exit_retry", "pause").design == "exit_retry"


def test_a_verdict_is_not_carried_over() -> None:
    """Between two transactions the guest is another: other tables, another mode, without an exit."""
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        state = vm.engine.vm.vcpus[0].sregs()
        assert replace(vm, 1, "exit_retry").design == "exit_retry"
        vm.engine.vm.vcpus[0].set_sregs(real_mode(state))
        with pytest.raises(UnsafeError, match="vCPU 0 is in real mode"):
            replace(vm, 1, "exit_retry")
        vm.engine.vm.vcpus[0].set_sregs(state)
        assert replace(vm, 1, "exit_retry").design == "exit_retry"


def test_the_vcpus_are_stopped_while_they_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the look at the registers until the first memory is away: what was judged is what the update meets."""
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        words, seen = vm.engine.vm.words, []
        region = vm.engine.vm.set_user_memory_region

        def looked(slot: int, *rest: int) -> None:
            region(slot, *rest)
            seen.append((slot, rest[1] != 0, peek(words, int(at.PAUSED)), peek(words, int(at.UPDATES)) & 1))

        monkeypatch.setattr(vm.engine.vm, "set_user_memory_region", looked)
        with vm.memory.transaction(design="exit_retry") as change:
            change.create(3, gpa=16 << 20, size=PAGE)
            host = change.delete(1)
            change.create(1, gpa=DATA, size=4 * PAGE, host=host)
            change.delete(3)
        assert seen == [(3, True, 1, 1), (1, False, 1, 1), (1, True, 0, 1), (3, False, 0, 1)]


def test_what_was_registered_with_the_vm_is_part_of_the_verdict() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        vm.ioctl(0x4010AE67, struct.pack("<QII", DATA, PAGE, 0))  # KVM_REGISTER_COALESCED_MMIO
        with pytest.raises(UnsafeError, match=f"coalesced MMIO at \\[{DATA:#x}, "):
            replace(vm, 1, "exit_retry")
        event = os.eventfd(0)
        vm.ioctl(0x4010AE68, struct.pack("<QII", DATA, PAGE, 0))
        vm.ioctl(0x4040AE79, struct.pack("<QQIiI36x", 0, DATA, 8, event, 0))  # KVM_IOEVENTFD
        with pytest.raises(UnsafeError, match="ioeventfd at"):
            replace(vm, 1, "exit_retry")
        vm.ioctl(0x4040AE79, struct.pack("<QQIiI36x", 0, DATA, 8, event, 4))
        os.close(event)
        assert replace(vm, 1, "exit_retry").design == "exit_retry"


@pytest.mark.parametrize("irqchip", [True, False])
def test_interrupt_controllers_are_asked_for(irqchip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes KVM_CREATE_IRQCHIP before the first vCPU only: a caller that makes one does it by then."""
    ask = VmFile.enable_cap

    def first(vm: VmFile, *arguments: int) -> None:
        if irqchip and arguments[0] == Cap.EXIT_ON_EMULATION_FAILURE:
            fcntl.ioctl(vm.file, 0xAE60, 0)  # KVM_CREATE_IRQCHIP
        ask(vm, *arguments)

    monkeypatch.setattr(VmFile, "enable_cap", first)
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        assert vm.engine.vm.vcpus[0].has_local_apic == irqchip
        vm.memory.create(5, gpa=0xFEC00000, size=PAGE)
        vm.memory.create(6, gpa=0xFED00000, size=PAGE)
        if irqchip:
            with pytest.raises(UnsafeError, match=r"the IOAPIC in the kernel at \[0xfec00000, 0xfec00100\)"):
                replace(vm, 5, "exit_retry")
        else:
            assert replace(vm, 5, "exit_retry").design == "exit_retry"
        assert replace(vm, 6, "exit_retry").design == "exit_retry", "no controller is there"


def test_wrong_words_are_one_line() -> None:
    with Vm(engine="kvm") as vm:
        with pytest.raises(UsageError, match="unsafe: 'maybe' is not one of refuse, pause"):
            vm.memory.transaction(design="exit_retry", unsafe="maybe")
        with vm.memory.transaction(design="pause") as change:
            change.create(0, gpa=0, size=PAGE)
        assert (change.design, change.why) == ("pause", "asked for")


def test_a_move_onto_itself_is_seen_by_nobody() -> None:
    """Frame 0x20 has memory before and after. A guest that is emulated throughout would see it gone for a moment."""
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=16 * PAGE)
        vm.memory.create(1, gpa=0x20000, size=2 * PAGE)
        vm.vcpus[0].load_code(READ_FOR_EVER, PAGE)
        vm.engine.vm.start()
        for _ in range(300):
            assert vm.memory.move(1, 0x1F000).base_gfn == 0x1F
            assert vm.memory.move(1, 0x20000).base_gfn == 0x20
        assert vm.engine.vm.running == 1, vm.engine.vm.ended
        vm.engine.vm.stop()
        pauses = vm.engine.counts.pauses
        vm.memory.move(1, 0x40000)
        assert vm.engine.counts.pauses == pauses + 1, "if that were refused, it would have been away"


def test_a_move_that_is_refused_changes_nothing() -> None:
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=16 * PAGE)
        vm.memory.create(1, gpa=0x20000, size=2 * PAGE)
        vm.memory.create(2, gpa=0x1E000, size=2 * PAGE)
        with pytest.raises(MemslotError):
            vm.memory.move(1, 0x1F000)
        assert vm.memory[1].base_gfn == 0x20
        vm.check()


def test_a_log_that_ends_is_no_reason_to_stop_the_vcpus_any_longer() -> None:
    """The slot comes back when the vCPU has met the hole: one that is stopped would not. Its store is logged."""
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        vm.memory.set_flags(1, 1)
        kvm, held = vm.engine.vm, int(at.HELD)
        plain, met = kvm.set_user_memory_region, list[bool]()
        kvm.vcpus[0].compile()  # else its thread does, and takes its time
        vcpu = threading.Thread(target=vm.vcpus[0].run)

        def when_it_waits(slot: int, gpa: int, size: int, *rest: int) -> None:
            if not size:
                plain(slot, gpa, size, *rest)
                vcpu.start()  # it waits for the end of the pause first
                return
            end = time.monotonic() + LIMIT_S
            while not kvm.vcpus[0].words[held] and time.monotonic() < end:
                time.sleep(0.001)
            met.append(bool(kvm.vcpus[0].words[held]))
            plain(slot, gpa, size, *rest)

        kvm.set_user_memory_region = when_it_waits  # type: ignore[assignment,method-assign]
        with vm.memory.transaction(design="exit_retry") as change:
            host = change.delete(1)
            change.create(1, gpa=DATA, size=4 * PAGE, host=host, flags=1)
        vcpu.join(LIMIT_S)
        assert (change.design, met, change.dirty) == ("exit_retry", [True], [])
        assert vm.memory.read(DATA, 1) == b"*"
        assert vm.dirty_log(1).tolist() == [True, False, False, False]


def test_what_was_written_for_the_guest_is_in_the_vms_dirty_log() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        vm.memory.delete(1)
        memory = mmap.mmap(-1, 4 * PAGE)
        engine, words = vm.engine, vm.engine.vm.vcpus[0].words
        engine.retry_exits(True)
        exits: list[object] = []
        vm.engine.vm.vcpus[0].compile()
        thread = threading.Thread(target=lambda: exits.append(vm.vcpus[0].run()))
        with engine.exits_held():
            thread.start()
            end = time.monotonic() + LIMIT_S
            while not words[int(at.STALL_BEGUN)] and time.monotonic() < end:
                time.sleep(0.001)
            vm.memory.create(1, gpa=DATA, size=4 * PAGE, host=memory, flags=1)
        thread.join(LIMIT_S)
        assert exits == [Shutdown()]
        assert ctypes.c_uint64.from_buffer_copy(memory).value == 42
        assert vm.dirty_log(1).tolist() == [True, False, False, False]
        assert not vm.dirty_log(1).any()
