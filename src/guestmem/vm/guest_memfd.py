"""A VM's guest_memfd files: the software engine's are ``gmem.GuestMemfd``; the kernel's are files, seen through this.

Source of what the kernel's can do: Linux 6.18, ``virt/kvm/guest_memfd.c``.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..abi.arguments import whole
from ..errors import GuestMemfdError, MemslotError, UsageError
from ..units import PAGE_SIZE
from .slot_memory import HostPiece

if TYPE_CHECKING:
    from .kvm_backend import KvmBackend

__all__ = ["Carried", "File", "FilePiece", "KernelGuestMemfd", "file_of", "host_of"]

GUEST_MEMFD_FLAG_MMAP = 1
_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class File(Protocol):
    """A guest_memfd of either engine, as slots see it."""

    number: int
    """What ``Slot.guest_memfd`` says; 0: no VM made it."""
    fd: int
    flags: int
    closed: bool
    vm: object

    @property
    def size(self) -> int:
        """Bytes."""


class KernelGuestMemfd:
    """A file of KVM_CREATE_GUEST_MEMFD: ``fd``, ``size``, ``flags``. What it refuses has the kernel's errno."""

    def __init__(self, vm: KvmBackend, fd: int, size: int, flags: int) -> None:
        self.vm: object = vm
        self.fd, self.size, self.flags = fd, size, flags
        self._calls = vm.engine.vm.calls
        self.number = fd + 1
        self.closed = False

    def mmap(self, offset: int = 0, size: int | None = None) -> mmap.mmap:
        """Map it for the host; a touch of a page that the host may not have ends the process by SIGBUS."""
        try:
            with self._calls:
                return mmap.mmap(self.fd, self.size - offset if size is None else size, offset=offset)
        except OSError as error:
            raise GuestMemfdError(error.errno or errno.EINVAL, f"guest_memfd: mmap: {error.strerror}") from None

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Commit memory (KEEP_SIZE 1), or give it back (with PUNCH_HOLE 2)."""
        with self._calls:
            number = ctypes.get_errno() if _libc.fallocate(self.fd, mode, offset, length) else 0
        if number:
            raise GuestMemfdError(number, f"guest_memfd: fallocate: {os.strerror(number)}")

    def punch(self, offset: int, length: int) -> None:
        """A hole: memory goes back; read again, it is zero."""
        self.fallocate(3, offset, length)

    def __repr__(self) -> str:
        return f"KernelGuestMemfd({self.size:#x}, flags={self.flags}, fd={self.fd})"


class Carried(NamedTuple):
    """The file of a slot that goes, for one that comes in its place."""

    number: int
    vm: object
    fd: int = -1
    flags: int = 0
    size: int = 1 << 63
    closed: bool = False


class FilePiece(HostPiece):
    """Host memory that is a mapping of a guest_memfd, which is closed when nobody holds this any more."""

    __slots__ = ("mapping",)

    def __init__(self, mapping: Any, size: int) -> None:
        super().__init__(
            mapping.address, size, memoryview((ctypes.c_uint8 * size).from_address(mapping.address)).cast("B")
        )
        self.mapping = mapping

    def __del__(self) -> None:
        if hasattr(self, "mapping"):
            self.mapping.close()


def file_of(name: str, given: Any, offset: Any, vm: object) -> tuple[int, int]:
    """Number of a file that a slot of ``vm`` is to have, and the offset; UsageError for what is no file of a VM's."""
    number = getattr(given, "number", None)
    if not isinstance(number, int) or not hasattr(given, "fd"):
        raise UsageError(f"{name}: guest_memfd: {given!r} is none; Vm.create_guest_memfd makes one")
    if not number:
        raise UsageError(f"{name}: guest_memfd: no VM made it; Vm.create_guest_memfd makes one")
    offset = whole("offset", offset)
    if offset % PAGE_SIZE:
        raise MemslotError(errno.EINVAL, f"{name}: offset {offset:#x} is not a multiple of {PAGE_SIZE:#x}")
    if given.vm is not vm:
        raise MemslotError(errno.EINVAL, f"{name}: guest_memfd belongs to another VM")
    return number, offset


def host_of(given: Any, offset: int, size: int, host: Any) -> HostPiece:
    """Host memory of a slot with a file: ``host``, else a mapping of the file if it has MMAP, else new memory.

    So guest and VMM find the same bytes in what is shared. Past the file's end the slot is refused, and it does not
    matter.
    """
    inside = offset + size <= given.size and size > 0 and size % PAGE_SIZE == 0
    if host is not None or not given.flags & GUEST_MEMFD_FLAG_MMAP or not inside or given.closed:
        return HostPiece.of(host, size)
    if isinstance(given, KernelGuestMemfd):
        return HostPiece.of(given.mmap(offset, size), size)
    return FilePiece(given.mmap(offset, size, real=True), size)
