"""Numbers and layouts of ``/dev/kvm`` and its vCPUs on every architecture: ioctls, exit reasons, ``struct kvm_run``.

Those of memory are in ``abi.structures``, x86's, but SEGMENT, in ``x86.registers``. Source:
``include/uapi/linux/kvm.h``, Linux 6.18.
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
    "RUN_DATA",
    "RUN_EXIT_REASON",
    "RUN_FLAGS",
    "RUN_IMMEDIATE_EXIT",
    "RUN_LENGTH",
    "RUN_PHYS_ADDR",
    "RUN_SYNC",
    "RUN_UNION",
    "SEGMENT",
    "ExitReason",
    "Ioctl",
    "ior",
    "iow",
    "iowr",
]

API_VERSION = 12
_KVMIO = 0xAE


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def iow(number: int, size: int) -> int:
    """Number of a request whose structure of ``size`` bytes the kernel reads."""
    return 1 << 30 | size << 16 | _io(number)


def ior(number: int, size: int) -> int:
    """Number of a request whose structure of ``size`` bytes the kernel writes."""
    return 2 << 30 | size << 16 | _io(number)


def iowr(number: int, size: int) -> int:
    """Number of a request whose structure of ``size`` bytes the kernel reads and writes."""
    return 3 << 30 | size << 16 | _io(number)


SEGMENT = struct.Struct("<QIHBBBBBBBBBB")
"""x86's kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding."""
DIRTY_GFN = struct.Struct("<IIQ")
"""kvm_dirty_gfn, an entry of a ring: flags, slot, offset."""
DIRTY_LOG_PAGE_OFFSET = 64
"""Page of the vCPU's file at which its dirty ring is mapped (x86)."""
DIRTY_GFN_DIRTY, DIRTY_GFN_RESET = 1, 2
"""Flags of a ring entry: the kernel has filled it; user space has taken it."""


class Ioctl(enum.IntEnum):
    """Requests on ``/dev/kvm`` and on a vCPU; those on a VM are ``abi.structures.MemoryIoctl``."""

    GET_API_VERSION = _io(0x00)
    CREATE_VM = _io(0x01)
    GET_VCPU_MMAP_SIZE = _io(0x04)

    RUN = _io(0x80)


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
RUN_SYNC = const(0x140)  # in kvm_sync_regs (2 KiB from 0x130), of no meaning while kvm_valid_regs is 0: room for us
RUN_LENGTH = const(48)  # u32; the byte after it: is_write
