"""The memory itself: a memory file, mapped once for the engine; holes give memory back to the system.

A second mapping, for the host, can be asked for: pages that the host may not touch are pages of an empty file there,
so that a raw access ends as on the kernel's guest_memfd, by SIGBUS. Source of the idea: pages past the end of a mapped
file, mmap(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from typing import Any

from ..errors import GuestMemfdError
from ..units import PAGE_SIZE, format_size

__all__ = ["Backing", "HostWindow"]

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_MAP_SHARED, _MAP_FIXED, _NORESERVE = 0x1, 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value
_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def _failed(what: str) -> GuestMemfdError:
    number = ctypes.get_errno()
    return GuestMemfdError(number, f"guest_memfd: {what}: {os.strerror(number)}")


class Backing:
    """``size`` bytes of memory; nothing is committed until it is touched or allocated.

    >>> memory = Backing(0x4000)
    >>> memory.allocate(0x1000, 0x2000)
    >>> memory.resident
    8192
    >>> memory.punch(0x1000, 0x1000)
    >>> memory.resident
    4096
    >>> memory.close()
    """

    def __init__(self, size: int) -> None:
        self.size = size
        try:
            self.fd = os.memfd_create("guest_memfd")
        except OSError as error:
            raise GuestMemfdError(error.errno or errno.ENOMEM, f"guest_memfd: {error.strerror}") from None
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | _NORESERVE)
        except (OSError, OverflowError, ValueError) as error:
            os.close(self.fd)
            raise GuestMemfdError(errno.ENOMEM, f"guest_memfd: cannot map {format_size(size)}: {error}") from None
        view = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(view)
        del view
        self._finish = weakref.finalize(self, os.close, self.fd)

    @property
    def resident(self) -> int:
        """Bytes of memory that the file holds now."""
        return os.fstat(self.fd).st_blocks * 512

    def allocate(self, offset: int, size: int) -> None:
        """Commit memory; GuestMemfdError (ENOMEM, ENOSPC, EINTR) if there is none."""
        if _libc.fallocate(self.fd, _KEEP_SIZE, offset, size):
            raise _failed(f"no memory for {format_size(size)} at {offset:#x}")

    def punch(self, offset: int, size: int) -> None:
        """Give memory back; it reads as zeroes afterwards."""
        if _libc.fallocate(self.fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size):
            raise _failed(f"cannot punch {format_size(size)} at {offset:#x}")

    def read(self, offset: int, size: int) -> bytes:
        """Bytes, whoever may see them."""
        return self._map[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, whoever may."""
        self._map[offset : offset + len(data)] = data

    def close(self) -> None:
        """Give all of it back, once nothing is mapped any more. A second close does nothing."""
        if self._finish.alive:
            self._map.close()
            self._finish()


class HostWindow:
    """Addresses through which this process touches ``size`` bytes of the memory, where it may.

    ``allow`` and ``bar`` change what a raw access does; each is one mapping, so many alternating pages cost as many
    of the process's mappings (ENOMEM past ``vm.max_map_count``; then nothing has changed).
    """

    def __init__(self, backing: Backing, offset: int, size: int) -> None:
        self._backing, self.offset, self.size = backing, offset, size
        self._nothing = os.memfd_create("guest_memfd, barred")
        address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, _MAP_SHARED, self._nothing, 0)
        if address == _FAILED:
            os.close(self._nothing)
            raise _failed(f"cannot map {format_size(size)}")
        self.address = int(address)
        self._finish = weakref.finalize(self, _unmap, self.address, size, self._nothing)

    def _map(self, fd: int, start: int, end: int, offset: int) -> None:
        start, end = max(start, self.offset), min(end, self.offset + self.size)
        if start >= end:
            return
        protection, where = mmap.PROT_READ | mmap.PROT_WRITE, self.address + start - self.offset
        if _libc.mmap(where, end - start, protection, _MAP_SHARED | _MAP_FIXED, fd, offset or 0) == _FAILED:
            raise _failed(f"cannot map [{start:#x}, {end:#x})")

    def allow(self, start: int, end: int) -> None:
        """Bytes [start, end) of the file are the file's memory; past its end they remain SIGBUS."""
        self._map(self._backing.fd, start, end, max(start, self.offset))

    def bar(self, start: int, end: int) -> None:
        """Whoever touches bytes [start, end) of the file dies by SIGBUS."""
        self._map(self._nothing, start, end, 0)

    def close(self) -> None:
        """Unmap it."""
        self._finish()


def _unmap(address: int, size: int, fd: int) -> None:
    _libc.munmap(address, size)
    os.close(fd)


assert PAGE_SIZE == mmap.PAGESIZE or mmap.PAGESIZE % PAGE_SIZE == 0
