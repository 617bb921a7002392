"""On /dev/kvm: code runs, exits by kind, and the log has exactly the pages it wrote."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from guestmem import CapabilityError, GuestmemError, UsageError
from guestmem.engines.kvm.device import unusable
from guestmem.vm import Hlt, Io, Mmio, Vm, Write

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable())
PAGE = 0x1000
# mov byte [0x2000], 7; mov byte [0x3001], 8; mov ax, [0x9000]; mov [0x4000], ax; hlt
CODE = bytes.fromhex("c606002007 c606013008 a10090 a30040 f4")


def test_a_real_mode_guest() -> None:
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE, flags=1)
        vcpu = vm.vcpus[0]
        vcpu.load_code(CODE, PAGE)
        exit_ = vcpu.run()
        assert exit_ == Mmio(0x9000, 2, False, b"")
        vcpu.answer(exit_, b"\x34\x12")
        assert vcpu.run() == Hlt()
        assert vm.memory.read(0x4000, 2) == b"\x34\x12"
        assert vm.dirty_log(0).nonzero()[0].tolist() == [2, 3, 4]
        assert not vm.dirty_log(0).any()


def test_a_log_that_is_cleared_by_hand() -> None:
    with Vm(engine="kvm", manual_protect=True) as vm:
        vm.memory.create(0, gpa=0, size=130 * PAGE, flags=1)
        for _ in range(2):
            vm.vcpus[0].load_code(bytes.fromhex("c606002007 c606013008 f4"), PAGE)  # writes pages 2 and 3
            assert vm.vcpus[0].run() == Hlt()
            for _ in range(2):
                log = vm.dirty_log(0)
                assert log.dtype == np.dtype(bool)
                assert log.shape == (130,)
                assert log.nonzero()[0].tolist() == [2, 3]
            vm.clear_dirty_log(0, [False, False, True] + [False] * 61)
            assert vm.dirty_log(0).nonzero()[0].tolist() == [3]
            vm.clear_dirty_log(0, np.ones(2, np.bool_), first_page=128)
            vm.clear_dirty_log(0, log)
            assert not vm.dirty_log(0).any()


def test_a_new_log_that_has_all_pages() -> None:
    with Vm(engine="kvm", initially_set=True) as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE, flags=1)
        assert vm.dirty_log(0).all()


def test_rings() -> None:
    with Vm(engine="kvm", ring_entries=256) as vm:
        vm.memory.create(1, gpa=0, size=8 * PAGE, flags=1)
        vm.vcpus[0].load_code(bytes.fromhex("c606002007 f4"), PAGE)
        assert vm.vcpus[0].run() == Hlt()
        assert [(entry.slot, entry.offset) for entry in vm.harvest()] == [(1, 2)]
        assert vm.reset_dirty_rings() == 1


def test_new_code_is_run_after_an_exit_that_nobody_answered() -> None:
    """KVM goes on with the instruction that it has begun, with the registers of then, unless that is ended first."""
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        vcpu = vm.vcpus[0]
        for first in (CODE, bytes.fromhex("ba1000 b90300 bf0040 f36c f4")):  # a read of 0x9000; insb, three times
            vcpu.load_code(first, PAGE)
            asked = vcpu.run()
            assert isinstance(asked, Mmio | Io)
            with pytest.raises(UsageError, match="was not answered"):
                vcpu.run()
            vm.memory.write(0x3000, bytes(1))
            vcpu.load_code(bytes.fromhex("c606003005 f4"), 0x1800)  # mov byte [0x3000], 5; hlt
            assert vcpu.run() == Hlt()
            assert vm.memory.read(0x3000, 1) == b"\5"
            assert vcpu.registers()["rip"] == 0x1806
            with pytest.raises(UsageError, match="is not the read that waits"):
                vcpu.answer(asked, b"12")


def test_registers_that_are_set_after_an_exit_stay() -> None:
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        vcpu = vm.vcpus[0]
        vcpu.load_code(bytes.fromhex("a10090 f4 f4"), PAGE)  # mov ax, [0x9000]; hlt; hlt
        exit_ = vcpu.run()
        vcpu.answer(exit_, b"\1\2")
        vcpu.set_registers(rip=PAGE + 4, rcx=9)
        assert vcpu.run() == Hlt()
        registers = vcpu.registers()
        assert (registers["rip"], registers["rax"] & 0xFFFF, registers["rcx"]) == (PAGE + 5, 0x201, 9)


def test_each_vcpu_runs_in_a_thread_of_its_own_and_in_one_only() -> None:
    with Vm(2, engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        ended: list[str] = []

        def run(index: int) -> None:
            try:
                vm.vcpus[index].run()
            except GuestmemError as error:
                ended.append(str(error))

        threads = []
        for index, vcpu in enumerate(vm.vcpus):
            vcpu.load_code(b"\xeb\xfe", PAGE + 16 * index)  # jmp to itself
            threads.append(threading.Thread(target=run, args=(index,)))
            threads[-1].start()
        while not all(vcpu.is_run_elsewhere for vcpu in vm.engine.vm.vcpus):
            time.sleep(0.001)
        for refused in (vm.vcpus[0].run, vm.engine.vm.start, lambda: vm.vcpus[1].load_code(b"\xf4", PAGE + 16)):
            with pytest.raises(GuestmemError, match=r"another thread|is in KVM_RUN"):
                refused()
        assert vm.memory.read(PAGE + 16, 1) == b"\xeb", "load_code refuses before it writes"
        vm.engine.kick()  # between two KVM_RUNs a vCPU is nobody's for a moment: who asks then would run it
        vm.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert sorted(ended) == [f"vCPU {index}: the VM has been stopped" for index in (0, 1)]


def test_a_vm_that_nobody_closes_leaves_no_files_open() -> None:
    made = 5
    gc.collect()
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(made):
        Vm(engine="kvm").memory.create(0, gpa=0, size=PAGE)
    gc.collect()
    after = len([*Path("/proc/self/fd").iterdir()])
    assert after < before + made, "each would leave three; others may open and close a file meanwhile"


def test_what_it_cannot_do() -> None:
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        with pytest.raises(CapabilityError, match="it runs code"):
            vm.vcpus[0].load([Write(0, b"w")])
        vm.memory.create(1, gpa=1 << 20, size=PAGE)
        with pytest.raises(UsageError, match="below 64 KiB"):
            vm.vcpus[0].load_code(b"\xf4", 1 << 20)
        with pytest.raises(UsageError, match="needs a place for page tables"):
            vm.vcpus[0].load_code(b"\xf4", 0, mode="long")
        with pytest.raises(UsageError, match="is not 'real' or 'long'"):
            vm.vcpus[0].load_code(b"\xf4", 0, mode="virtual")
