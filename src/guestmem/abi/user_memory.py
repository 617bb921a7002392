"""User memory as ioctls see it: copied in and out, with EFAULT where nothing is mapped.

``ProcessMemory`` is this process, through ``process_vm_readv`` and ``process_vm_writev``, which fail where a plain
access would end the process; ``BufferMemory`` is made up, for a model that runs beside a kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Protocol

from ..errors import MemslotError

__all__ = ["BufferMemory", "ProcessMemory", "UserMemory"]


class UserMemory(Protocol):
    """What an ioctl's pointers point to."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes; MemslotError (EFAULT) if they cannot all be read."""

    def write(self, address: int, content: bytes) -> None:
        """Write all of ``content``; MemslotError (EFAULT) if not all of it can be written."""


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class ProcessMemory:
    """The memory of this process.

    >>> memory = ProcessMemory()
    >>> buffer = ctypes.create_string_buffer(4)
    >>> memory.write(ctypes.addressof(buffer), b"abcd")
    >>> memory.read(ctypes.addressof(buffer), 4)
    b'abcd'
    >>> memory.read(8, 4)
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EFAULT: address 0x8: 4 bytes are not mapped
    """

    def __init__(self) -> None:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        self._readv, self._writev = libc.process_vm_readv, libc.process_vm_writev
        for function in (self._readv, self._writev):
            function.restype = ctypes.c_ssize_t

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from ``address`` on."""
        buffer = ctypes.create_string_buffer(size or 1)
        self._move(self._readv, ctypes.addressof(buffer), address, size)
        return buffer.raw[:size]

    def write(self, address: int, content: bytes) -> None:
        """Write ``content`` to ``address``."""
        buffer = ctypes.create_string_buffer(content, len(content) or 1)
        self._move(self._writev, ctypes.addressof(buffer), address, len(content))

    @staticmethod
    def _move(function: Any, local: int, remote: int, size: int) -> None:
        if not size:
            return
        ours, theirs = _Vector(local, size), _Vector(remote, size)
        one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
        if remote >> 63 or function(os.getpid(), ctypes.byref(ours), one, ctypes.byref(theirs), one, none) != size:
            raise MemslotError(errno.EFAULT, f"address {remote:#x}: {size} bytes are not mapped")


class BufferMemory:
    """One range of made-up memory ``[start, start + size)``; all else is not mapped.

    >>> memory = BufferMemory(0x1000, 16)
    >>> memory.write(0x1008, b"12345678"); memory.read(0x100C, 4)
    b'5678'
    """

    def __init__(self, start: int, size: int) -> None:
        self.start, self.content = start, bytearray(size)

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from ``address`` on."""
        at = self._place(address, size)
        return bytes(self.content[at : at + size])

    def write(self, address: int, content: bytes) -> None:
        """Write ``content`` to ``address``."""
        at = self._place(address, len(content))
        self.content[at : at + len(content)] = content

    def _place(self, address: int, size: int) -> int:
        at = address - self.start
        if size and not 0 <= at <= len(self.content) - size:
            raise MemslotError(errno.EFAULT, f"address {address:#x}: {size} bytes are not mapped")
        return at if size else 0
