"""On /dev/kvm: code runs, exits by kind, and the log has exactly the pages it wrote."""

from __future__ import annotations

import pytest

from guestmem import CapabilityError, UsageError
from guestmem.engines.kvm.device import unusable
from guestmem.vm import Hlt, Mmio, Vm, Write

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


def test_rings() -> None:
    with Vm(engine="kvm", ring_entries=256) as vm:
        vm.memory.create(1, gpa=0, size=8 * PAGE, flags=1)
        vm.vcpus[0].load_code(bytes.fromhex("c606002007 f4"), PAGE)
        assert vm.vcpus[0].run() == Hlt()
        assert [(entry.slot, entry.offset) for entry in vm.harvest()] == [(1, 2)]
        assert vm.reset_dirty_rings() == 1


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
