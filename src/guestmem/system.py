"""System calls from compiled code, and accesses of 1, 2 and 4 bytes to raw host memory; in both forms.

What drives a device by ioctl and a shared page, such as ``/dev/kvm`` and its ``struct kvm_run``. A system call answers
as the kernel does: a result, or minus the error number in two's complement (``failed``). Accesses are single and
relaxed; the address must be mapped, and aligned to the size of the access. Eight bytes: ``atomics.host_load``.
"""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING, Any

from .compiled import INTERPRETED, U64, compiled, const, wrapping
from .units import PAGE_SIZE, U64_MAX

__all__ = [
    "SYS_IOCTL",
    "SYS_TGKILL",
    "failed",
    "host_copy2",
    "host_copy4",
    "host_copy8",
    "host_copy16",
    "host_load8",
    "host_load16",
    "host_load32",
    "host_may_access",
    "host_store8",
    "host_store16",
    "host_store32",
    "system_call",
]

_X86 = platform.machine() == "x86_64"
SYS_IOCTL = const(16 if _X86 else 29)
"""Numbers of system calls on x86-64; elsewhere those of the generic table (arm64, riscv64)."""
SYS_TGKILL = const(234 if _X86 else 131)
_SYS_MADVISE = const(28 if _X86 else 233)
_PAGE = const(PAGE_SIZE)
_PAGE_MASK = const(U64_MAX - PAGE_SIZE + 1)
_POPULATE_READ, _POPULATE_WRITE = const(22), const(23)

_FIRST_ERROR = const(U64_MAX - 4094)

if TYPE_CHECKING or INTERPRETED:
    _libc: Any = ctypes.CDLL(None, use_errno=True)
    _libc.syscall.restype = ctypes.c_long

    def system_call(number: int, first: int, second: int, third: int) -> int:
        """Call the kernel with three words; returns its answer, or minus the error number modulo 2**64."""
        answer: int = _libc.syscall(
            ctypes.c_long(number), ctypes.c_uint64(first), ctypes.c_uint64(second), ctypes.c_uint64(third)
        )
        return (-ctypes.get_errno() if answer == -1 else answer) & U64_MAX

    def host_copy2(target: int, source: int) -> None:
        """Copy 2 bytes by one load and one store, aligned or not."""
        ctypes.memmove(target, source, 2)

    def host_copy4(target: int, source: int) -> None:
        """Copy 4 bytes by one load and one store, aligned or not."""
        ctypes.memmove(target, source, 4)

    def host_copy8(target: int, source: int) -> None:
        """Copy 8 bytes by one load and one store, aligned or not."""
        ctypes.memmove(target, source, 8)

    def host_copy16(target: int, source: int) -> None:
        """Copy 16 bytes by one load and one store: single accesses where aligned, on processors with AVX."""
        ctypes.memmove(target, source, 16)

    def host_load8(address: int) -> int:
        """The byte at a raw host address."""
        return ctypes.c_uint8.from_address(address).value

    def host_load16(address: int) -> int:
        """The 2 bytes at a raw host address."""
        return ctypes.c_uint16.from_address(address).value

    def host_load32(address: int) -> int:
        """The 4 bytes at a raw host address."""
        return ctypes.c_uint32.from_address(address).value

    def host_store8(address: int, value: int) -> None:
        """Write the low byte of ``value``."""
        ctypes.c_uint8.from_address(address).value = value & 0xFF

    def host_store16(address: int, value: int) -> None:
        """Write the low 2 bytes of ``value``."""
        ctypes.c_uint16.from_address(address).value = value & 0xFFFF

    def host_store32(address: int, value: int) -> None:
        """Write the low 4 bytes of ``value``."""
        ctypes.c_uint32.from_address(address).value = value & 0xFFFFFFFF

else:
    from ._intrinsics import (
        host_copy2,
        host_copy4,
        host_copy8,
        host_copy16,
        host_load8,
        host_load16,
        host_load32,
        host_store8,
        host_store16,
        host_store32,
        system_call,
    )


@compiled
def failed(answer: U64) -> U64:
    """The error number in a system call's answer, 0 if it is a result."""
    if answer < _FIRST_ERROR:
        return wrapping(0)
    return wrapping(~answer) + wrapping(1)


@compiled
def host_may_access(address: U64, writes: bool) -> bool:
    """Whether the page at a raw host address can be read, or written: an access right after this one faults not.

    MADV_POPULATE_READ and MADV_POPULATE_WRITE (Linux 5.14) fault the page in as the access would, and fail where that
    would end the process: nothing mapped, no right, past the end of a file. Memory of devices (VM_PFNMAP) is refused,
    too. It changes no content, so the access itself can be a single one.
    """
    advice = _POPULATE_WRITE if writes else _POPULATE_READ
    return failed(system_call(_SYS_MADVISE, address & _PAGE_MASK, _PAGE, advice)) == 0
