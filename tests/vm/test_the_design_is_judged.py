"""On the kernel a transaction goes by exit_retry where that is safe, else by pause_if_overlap; the Vm says why."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time

import pytest

from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.device import unusable
from guestmem.errors import MemslotError
from guestmem.vm import Hlt, Shutdown, Vm

pytestmark = [pytest.mark.skipif(bool(unusable()), reason=unusable()), pytest.mark.compiled_only]
PAGE = 0x1000
CODE, TABLES, DATA = 1 << 20, (1 << 20) + PAGE, 8 << 20
READ_FOR_EVER = bytes.fromhex("b80020 8ed8 a10000 ebfb")  # mov ax, 0x2000; mov ds, ax; l: mov ax, [0]; jmp l
STORE = bytes.fromhex("48c7042500008000 2a000000 f4")  # mov qword ptr [DATA], 42; hlt, which user mode may not


def long_mode(vm: Vm) -> None:
    vm.memory.create(0, gpa=CODE, size=64 * PAGE)
    vm.memory.create(1, gpa=DATA, size=4 * PAGE)
    vm.vcpus[0].load_code(STORE, CODE, mode="long", tables=TABLES)


def replace(vm: Vm, slot: int) -> None:
    """Delete a slot and create it again, on the same memory."""
    old = vm.memory[slot]
    with vm.memory.transaction() as change:
        host = change.delete(slot)
        change.create(slot, gpa=old.base_gfn << 12, size=old.npages << 12, host=host)


def test_exit_retry_where_it_is_safe() -> None:
    with Vm(engine="kvm") as vm:
        assert vm.design == "exit_retry"
        assert "judged at each transaction" in vm.design_why
        long_mode(vm)
        replace(vm, 1)
        assert vm.design == "exit_retry"
        assert vm.design_why.startswith("exit_retry: no condition of exit_retry is violated")
        assert "crosses a page" in vm.design_why, "what no look can find is said, too"
        assert vm.engine.counts.pauses == 0


def test_page_tables_in_what_changes() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        replace(vm, 0)
        assert vm.design == "pause_if_overlap"
        assert vm.design_why.startswith(f"pause_if_overlap: vCPU 0: a page table at {TABLES:#x} lies in what changes")
        assert vm.engine.counts.pauses == 1
        replace(vm, 1)
        assert vm.design == "exit_retry", "each transaction is judged by itself"


def test_a_guest_that_is_emulated() -> None:
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=16 * PAGE)
        vm.vcpus[0].load_code(b"\xf4", PAGE)
        replace(vm, 0)
        if not vm.engine.vm.host.software:
            pytest.skip(f"{vm.engine.vm.host.module} runs real mode natively")
        assert vm.design == "pause_if_overlap"
        assert "vCPU 0 is in real mode" in vm.design_why
        assert vm.vcpus[0].run() == Hlt()


def test_a_design_that_is_asked_for_is_not_judged() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        with vm.memory.transaction(design="pause") as change:
            change.delete(1)
        assert vm.engine.counts.pauses == 1
        assert "to be judged" in vm.design_why


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
        assert vm.design == ("pause_if_overlap" if vm.engine.vm.host.software else "exit_retry")
        vm.engine.vm.stop()
        pauses = vm.engine.counts.pauses
        vm.memory.move(1, 0x40000)
        assert vm.engine.counts.pauses == pauses, "elsewhere, nothing of it has memory before and after"


def test_a_move_that_is_refused_changes_nothing() -> None:
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=16 * PAGE)
        vm.memory.create(1, gpa=0x20000, size=2 * PAGE)
        vm.memory.create(2, gpa=0x1E000, size=2 * PAGE)
        with pytest.raises(MemslotError):
            vm.memory.move(1, 0x1F000)
        assert vm.memory[1].base_gfn == 0x20
        vm.check()


def test_what_was_written_for_the_guest_is_in_the_vms_dirty_log() -> None:
    with Vm(engine="kvm") as vm:
        long_mode(vm)
        vm.memory.delete(1)
        memory = mmap.mmap(-1, 4 * PAGE)
        engine, words = vm.engine, vm.vcpus[0].vcpu.words
        engine.retry_exits(True)
        exits: list[object] = []
        thread = threading.Thread(target=lambda: exits.append(vm.vcpus[0].run()))
        with engine.exits_held():
            thread.start()
            end = time.monotonic() + 20
            while not words[int(at.STALL_BEGUN)] and time.monotonic() < end:
                time.sleep(0.001)
            vm.memory.create(1, gpa=DATA, size=4 * PAGE, host=memory, flags=1)
        thread.join(20)
        assert exits == [Shutdown()]
        assert ctypes.c_uint64.from_buffer_copy(memory).value == 42
        assert vm.dirty_log(1).tolist() == [True, False, False, False]
        assert not vm.dirty_log(1).any()
