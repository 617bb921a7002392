"""A vCPU of the software engine exits as KVM's does: MMIO in fragments, failed fetches, full rings, EFAULT."""

from __future__ import annotations

import errno

import pytest

from guestmem import CapabilityError, MemslotError, UsageError
from guestmem.vm import DirtyRingFull, Fetch, Hlt, InternalError, Mmio, Read, Vm, Write

PAGE = 0x1000


def test_a_read_without_memory_is_answered() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=PAGE)
        vm.memory.write(PAGE - 2, b"xy")
        vcpu = vm.vcpus[0]
        vcpu.load([Read(PAGE - 2, 4), Read(0, 1)])
        exit_ = vcpu.run()
        assert exit_ == Mmio(PAGE, 2, False, b"")  # its first half was memory
        with pytest.raises(UsageError, match="was not answered"):
            vcpu.run()
        with pytest.raises(UsageError, match="the exit asks for 2"):
            vcpu.answer(exit_, b"1")
        vcpu.answer(exit_, b"12")
        assert vcpu.run() == Hlt()
        assert vcpu.values == [b"xy12", b"\0"]
        assert vcpu.run() == Hlt()


def test_wide_accesses_are_fragments_of_eight() -> None:
    with Vm() as vm:
        vcpu = vm.vcpus[0]
        vcpu.load([Write(PAGE - 12, bytes(range(20)))])
        exits = [vcpu.run() for _ in range(4)]
        assert exits == [
            Mmio(PAGE - 12, 8, True, bytes(range(8))),
            Mmio(PAGE - 4, 4, True, bytes(range(8, 12))),
            Mmio(PAGE, 8, True, bytes(range(12, 20))),
            Hlt(),
        ]


def test_a_write_to_a_readonly_slot_exits_and_a_read_does_not() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=PAGE, flags=2)
        vcpu = vm.vcpus[0]
        vcpu.load([Read(0), Write(8, b"w"), Fetch(16)])
        assert [vcpu.run(), vcpu.run()] == [Mmio(8, 1, True, b"w"), Hlt()]
        assert vm.memory.read(8, 1) == b"\0"


def test_a_fetch_without_memory_fails_until_there_is_some() -> None:
    with Vm() as vm:
        vcpu = vm.vcpus[0]
        vcpu.load([Fetch(PAGE)])
        assert [vcpu.run(), vcpu.run()] == [InternalError(1, 0, b"")] * 2
        vm.memory.create(0, gpa=PAGE, size=PAGE)
        assert vcpu.run() == Hlt()


def test_host_memory_that_is_not_mapped_is_efault() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=PAGE, host=PAGE)
        vm.vcpus[0].load([Write(0, b"w")])
        with pytest.raises(MemslotError) as caught:
            vm.vcpus[0].run()
        assert caught.value.errno == errno.EFAULT


def test_logs_have_what_vcpus_write_and_not_what_the_vmm_does() -> None:
    with Vm(2, manual_protect=True) as vm:
        vm.memory.create(0, gpa=0, size=130 * PAGE, flags=1)
        vm.memory.write(5 * PAGE, b"vmm")
        vm.vcpus[0].load([Write(PAGE - 1, b"ab"), Read(7 * PAGE)])
        vm.vcpus[1].load([Write(129 * PAGE, b"c")])
        assert vm.vcpus[0].run() == vm.vcpus[1].run() == Hlt()
        assert vm.dirty_log(0).nonzero()[0].tolist() == [0, 1, 129]
        vm.clear_dirty_log(0, [False, True] + [True] * 62)
        vm.clear_dirty_log(0, [True, True], first_page=128)
        assert vm.dirty_log(0).nonzero()[0].tolist() == [0]
        with pytest.raises(UsageError, match="without"):
            vm.harvest()


def test_a_full_ring_keeps_its_vcpu_out() -> None:
    with Vm(ring_entries=256) as vm:
        vm.memory.create(2, gpa=0, size=256 * PAGE, flags=1)
        vcpu = vm.vcpus[0]
        vcpu.load([Write(page * PAGE, b"w") for page in range(200)])
        assert [vcpu.run(), vcpu.run()] == [DirtyRingFull(), DirtyRingFull()]
        entries = vm.harvest()
        assert [entry.offset for entry in entries] == list(range(192))
        assert {entry.slot for entry in entries} == {2}
        assert vm.reset_dirty_rings() == 192
        assert vcpu.run() == Hlt()
        assert [entry.offset for entry in vm.harvest()] == list(range(192, 200))


def test_smm_sees_the_other_address_space() -> None:
    with Vm(smm=True) as vm:
        vm.memory.create(0, gpa=0, size=PAGE, as_id=1)
        vcpu = vm.vcpus[0]
        vcpu.load([Write(0, b"w")])
        assert isinstance(vcpu.run(), Mmio)
        vcpu.smm = True
        vcpu.load([Write(0, b"w")])
        assert vcpu.run() == Hlt()
        assert vm.memory.read(0, 1, as_id=1) == b"w"


def test_it_runs_no_code() -> None:
    with Vm() as vm, pytest.raises(CapabilityError, match="it runs accesses only"):
        vm.vcpus[0].load_code(b"\xf4", 0)
