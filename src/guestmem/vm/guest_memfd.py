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
from ..engines.kvm.ioctls import raw_ioctl
from ..errors import GuestMemfdError, MemslotError, UsageError
from ..units import PAGE_SIZE
from .arguments import request_of
from .slot_memory import HostPiece

if TYPE_CHECKING:
    from .kvm_backend import KvmBackend

__all__ = ["Carried", "File", "FilePiece", "KernelGuestMemfd", "file_ioctl", "file_of", "host_of"]

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

    def ioctl(self, request: int, argument: bytes | bytearray | int) -> int:
        """An ioctl on it; a bytearray gets what the kernel writes back. GuestMemfdError has the kernel's errno."""
        if not isinstance(argument, int) and len(argument) != request >> 16 & 0x3FFF:
            raise GuestMemfdError(errno.EFAULT, f"ioctl {request:#x}: {len(argument)} bytes")
        buffer = (ctypes.c_char * len(argument)).from_buffer(argument) if isinstance(argument, bytearray) else None
        with self._calls:
            result = raw_ioctl(self.fd, request, argument if buffer is None else ctypes.addressof(buffer))  # type: ignore[arg-type]
        if result < 0:
            raise GuestMemfdError(-result, f"guest_memfd: ioctl {request:#x}: {os.strerror(-result)}")
        return result

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


def file_ioctl(file: Any, request: int, argument: bytes | bytearray | int) -> int:
    """An ioctl on a guest_memfd of a ``Vm``: ``abi.memory_attributes`` has requests and structures.

    A bytearray gets what is written back (``error_offset``). GuestMemfdError with the kernel's errno.

    >>> from guestmem.abi.memory_attributes import FileIoctl, MemoryAttributes2
    >>> from guestmem.vm import Vm
    >>> with Vm(private_memory=True, version="7.4") as vm:
    ...     file = vm.create_guest_memfd(0x4000)
    ...     file_ioctl(file, FileIoctl.SET_MEMORY_ATTRIBUTES2, MemoryAttributes2(0, 0x1000, 0).pack()), file.state(0)
    (0, 'shared')
    """
    if not isinstance(getattr(file, "number", None), int) or not hasattr(file, "fd") or not file.number:
        raise UsageError(f"file: {file!r:.60} is no guest_memfd of a VM; Vm.create_guest_memfd makes one")
    return file.vm.file_ioctl(file, request_of(request), argument)  # type: ignore[no-any-return] # a backend's


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
