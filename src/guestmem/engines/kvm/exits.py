"""Why a vCPU left the guest, as frozen values by kind.

Source: the union in ``struct kvm_run``, ``include/uapi/linux/kvm.h``, and ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .abi import ExitReason

__all__ = [
    "DirtyRingFull",
    "Exit",
    "FailEntry",
    "Hlt",
    "InternalError",
    "Io",
    "MemoryFault",
    "Mmio",
    "OtherExit",
    "Shutdown",
    "SystemEvent",
    "decode",
]


@dataclass(frozen=True, slots=True)
class Exit:
    """Base of all kinds."""


@dataclass(frozen=True, slots=True)
class Mmio(Exit):
    """A data access where no slot can serve it: one fragment of at most 8 bytes, within a page.

    A read is answered by ``Vcpu.answer``, and carried on by the next run.
    """

    gpa: int
    size: int
    is_write: bool
    data: bytes
    """What the guest writes; of a read, nothing."""


@dataclass(frozen=True, slots=True)
class Io(Exit):
    """Port access. ``data`` of an ``out``: ``count`` items of ``size`` bytes; an ``in`` is answered as a read is."""

    port: int
    size: int
    count: int
    is_write: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Hlt(Exit):
    """The guest halted, and no interrupt controller in the kernel keeps it."""


@dataclass(frozen=True, slots=True)
class Shutdown(Exit):
    """Triple fault. With shadow paging also: the guest's own page tables are in no slot."""


@dataclass(frozen=True, slots=True)
class InternalError(Exit):
    """KVM could not go on. ``suberror`` 1: emulation failed; a failed instruction fetch is one, with no address.

    ``instruction``: its bytes, if the kernel gives them (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
    """

    suberror: int
    ndata: int
    instruction: bytes


@dataclass(frozen=True, slots=True)
class FailEntry(Exit):
    """The hardware refused to enter the guest."""

    hardware_entry_failure_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class SystemEvent(Exit):
    """Reset, shutdown or crash, asked for by the guest."""

    type: int


@dataclass(frozen=True, slots=True)
class DirtyRingFull(Exit):
    """The vCPU's dirty ring has passed its soft limit."""


@dataclass(frozen=True, slots=True)
class MemoryFault(Exit):
    """An access that memory attributes or guest_memfd do not let through (KVM_RUN also fails, with EFAULT)."""

    flags: int
    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class OtherExit(Exit):
    """A reason that is not decoded further."""

    reason: int


def decode(run: bytes | memoryview) -> Exit:
    """The exit that a ``struct kvm_run`` describes. O(1).

    >>> page = bytearray(4096)
    >>> struct.pack_into("<I", page, 8, ExitReason.MMIO)
    >>> struct.pack_into("<Q8sIB", page, 32, 0xFEE00000, b"abcd", 4, 1)
    >>> decode(bytes(page))
    Mmio(gpa=4276092928, size=4, is_write=True, data=b'abcd')
    """
    (reason,) = struct.unpack_from("<I", run, 8)
    match reason:
        case ExitReason.MMIO:
            gpa, data, size, is_write = struct.unpack_from("<Q8sIB", run, 32)
            return Mmio(gpa, size, bool(is_write), bytes(data[:size]) if is_write else b"")
        case ExitReason.IO:
            is_out, size, port, count, at = struct.unpack_from("<BBHIQ", run, 32)
            return Io(port, size, count, bool(is_out), bytes(run[at : at + size * count]) if is_out else b"")
        case ExitReason.HLT:
            return Hlt()
        case ExitReason.SHUTDOWN:
            return Shutdown()
        case ExitReason.INTERNAL_ERROR:
            suberror, ndata, flags, size = struct.unpack_from("<IIQB", run, 32)
            given = suberror == 1 and ndata and flags & 1
            return InternalError(suberror, ndata, bytes(run[49 : 49 + min(size, 15)]) if given else b"")
        case ExitReason.FAIL_ENTRY:
            return FailEntry(*struct.unpack_from("<QI", run, 32))
        case ExitReason.SYSTEM_EVENT:
            return SystemEvent(*struct.unpack_from("<I", run, 32))
        case ExitReason.DIRTY_RING_FULL:
            return DirtyRingFull()
        case ExitReason.MEMORY_FAULT:
            return MemoryFault(*struct.unpack_from("<QQQ", run, 32))
        case _:
            return OtherExit(reason)
