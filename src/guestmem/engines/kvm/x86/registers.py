"""x86's state of a vCPU as bytes: ``struct kvm_regs``, ``kvm_sregs``, ``kvm_vcpu_events``, ``kvm_xcrs``; their ioctls.

Source: ``arch/x86/include/uapi/asm/kvm.h`` and ``include/uapi/linux/kvm.h``, Linux 6.18.
"""

from __future__ import annotations

import enum
import struct

from ..abi import SEGMENT, ior, iow, iowr

__all__ = [
    "CR0",
    "CR3",
    "CR4",
    "EFER",
    "EVENTS_BYTES",
    "REGS",
    "REG_NAMES",
    "SEGMENT",
    "SEGMENT_NAMES",
    "SREGS_BYTES",
    "XCRS",
    "X86Ioctl",
]

SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
REG_NAMES = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
REGS = struct.Struct(f"<{len(REG_NAMES)}Q")
"""kvm_regs, in the order of REG_NAMES."""
SREGS_BYTES = 0x138
"""kvm_sregs: eight segments, two tables, cr0 cr2 cr3 cr4 cr8 efer apic_base, the interrupt bitmap."""
CR0, CR3, CR4, EFER = 224, 240, 248, 264
"""Places in kvm_sregs."""
EVENTS_BYTES = 0x40
"""kvm_vcpu_events."""
XCRS = struct.Struct("<IIIIQ368x")
"""kvm_xcrs: number of registers, flags; then number, reserved and value of the first."""


class X86Ioctl(enum.IntEnum):
    """Requests that only x86 has, or whose structures are x86's: on ``/dev/kvm`` (the first) and on a vCPU."""

    GET_SUPPORTED_CPUID = iowr(0x05, 8)
    GET_REGS = ior(0x81, REGS.size)
    SET_REGS = iow(0x82, REGS.size)
    GET_SREGS = ior(0x83, SREGS_BYTES)
    SET_SREGS = iow(0x84, SREGS_BYTES)
    SET_CPUID2 = iow(0x90, 8)
    GET_VCPU_EVENTS = ior(0x9F, EVENTS_BYTES)
    SET_VCPU_EVENTS = iow(0xA0, EVENTS_BYTES)
    SET_XCRS = iow(0xA7, XCRS.size)

    @property
    def sets_registers(self) -> bool:
        """Whether registers of before are lost by it: general ones, or segments and control registers."""
        return self in (X86Ioctl.SET_REGS, X86Ioctl.SET_SREGS)
