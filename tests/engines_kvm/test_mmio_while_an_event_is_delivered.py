"""An exception whose IDT lies in no slot cannot be delivered: the vCPU leaves, and never sees a device there.

A case of the kernel's set_memory_region_test, in our own words. Where the hardware delivers events, KVM says
KVM_EXIT_INTERNAL_ERROR, suberror 3 (delivery event); a software backend delivers them itself, and ends in a shutdown.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

import pytest

from guestmem.engines.kvm import InternalError, KvmEngine, Shutdown, identity_tables, user_mode
from guestmem.memslots import Change

NOWHERE = 0x30000
DELIVERY_EV = 3
IDT = 24 * 8 + 16
"""Place of the IDT (base, limit) in struct kvm_sregs."""
UNDEFINED = bytes.fromhex("0f0b")


@pytest.mark.parametrize("cpl", [0, 3])
def test_an_undefined_instruction_without_an_idt(cpl: int) -> None:
    with KvmEngine(1) as engine:
        memory = mmap.mmap(-1, 0x20000)
        view = ctypes.c_char.from_buffer(memory)
        engine.set_memory_region(Change(0, 0, 32, ctypes.addressof(view)))
        memory[0x1000 : 0x1000 + len(UNDEFINED)] = UNDEFINED
        tables = identity_tables(0x4000, 0x40000)
        memory[0x4000 : 0x4000 + len(tables)] = tables
        vcpu = engine.vm.vcpus[0]
        sregs = bytearray(user_mode(vcpu.sregs(), 0x4000, cpl=cpl))
        struct.pack_into("<QH", sregs, IDT, NOWHERE, 0xFFF)
        vcpu.set_sregs(bytes(sregs))
        vcpu.set_registers(rip=0x1000, rsp=0x3000, rflags=2)
        exit_ = vcpu.run()
        if engine.vm.host.software:
            assert isinstance(exit_, Shutdown)
        else:
            assert isinstance(exit_, InternalError)
            assert exit_.suberror == DELIVERY_EV
        engine.close()
        del view
        memory.close()
