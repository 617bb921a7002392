"""Numbers and layouts of ``/dev/kvm`` and its vCPUs: ioctls, exit reasons, structs. Of memory: ``abi.structures``.

Source: ``include/uapi/linux/kvm.h`` and ``arch/x86/include/uapi/asm/kvm.h``, Linux 6.18. All little-endian (x86-64).
"""

from __future__ import annotations

import enum
import struct

from ...compiled import const

__all__ = [
    "API_VERSION",
    "DIRTY_GFN",
    "DIRTY_GFN_DIRTY",
    "DIRTY_GFN_RESET",
    "DIRTY_LOG_PAGE_OFFSET",
    "REGS",
    "REG_NAMES",
    "RUN_DATA",
    "RUN_EXIT_REASON",
    "RUN_FLAGS",
    "RUN_IMMEDIATE_EXIT",
    "RUN_LENGTH",
    "RUN_PHYS_ADDR",
    "RUN_UNION",
    "SEGMENT",
    "SEGMENT_NAMES",
    "SREGS_BYTES",
    "ExitReason",
    "Ioctl",
]

API_VERSION = 12
_KVMIO = 0xAE


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _io(number)


DIRTY_GFN = struct.Struct("<IIQ")
"""kvm_dirty_gfn, an entry of a ring: flags, slot, offset."""
SEGMENT = struct.Struct("<QIHBBBBBBBBBB")
"""kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding."""
SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
REG_NAMES = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
REGS = struct.Struct(f"<{len(REG_NAMES)}Q")
"""kvm_regs, in the order of REG_NAMES."""
SREGS_BYTES = 0x138
"""kvm_sregs: eight segments, two tables, cr0 cr2 cr3 cr4 cr8 efer apic_base, the interrupt bitmap."""

DIRTY_LOG_PAGE_OFFSET = 64
"""Page of the vCPU's file at which its dirty ring is mapped (x86)."""
DIRTY_GFN_DIRTY, DIRTY_GFN_RESET = 1, 2
"""Flags of a ring entry: the kernel has filled it; user space has taken it."""


class Ioctl(enum.IntEnum):
    """Requests on ``/dev/kvm`` and on a vCPU; those on a VM are ``abi.structures.MemoryIoctl``."""

    GET_API_VERSION = _io(0x00)
    CREATE_VM = _io(0x01)
    GET_VCPU_MMAP_SIZE = _io(0x04)
    GET_SUPPORTED_CPUID = _iowr(0x05, 8)

    RUN = _io(0x80)
    GET_REGS = _ior(0x81, REGS.size)
    SET_REGS = _iow(0x82, REGS.size)
    GET_SREGS = _ior(0x83, SREGS_BYTES)
    SET_SREGS = _iow(0x84, SREGS_BYTES)
    SET_CPUID2 = _iow(0x90, 8)
    GET_VCPU_EVENTS = _ior(0x9F, 0x40)
    SET_VCPU_EVENTS = _iow(0xA0, 0x40)
    SET_XCRS = _iow(0xA7, 0x188)


class ExitReason(enum.IntEnum):
    """Why KVM_RUN returned (kvm_run.exit_reason); those that are decoded further have a class in ``exits``."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    DIRTY_RING_FULL = 31
    MEMORY_FAULT = 39


# struct kvm_run: where compiled code looks. immediate_exit is byte 1 of eight that only user space writes, so it is
# set and cleared as a word of eight bytes.
RUN_IMMEDIATE_EXIT = const(0x100)
RUN_EXIT_REASON = const(8)
RUN_FLAGS = const(14)  # u16; bit 0: the vCPU is in SMM, and its accesses are to address space 1
RUN_UNION = const(32)
RUN_PHYS_ADDR = const(32)
RUN_DATA = const(40)
RUN_LENGTH = const(48)  # u32; the byte after it: is_write
