"""User memory as ioctls see it: copied in and out, with EFAULT where nothing is mapped.

``ProcessMemory`` is this process, by calls that fail where a plain access would end it; ``BufferMemory`` is made up,
for a model that runs beside a kernel.
"""

from __future__ import annotations

import errno
from typing import Protocol

from ..errors import MemslotError
from ..process_memory import read_memory, write_memory

__all__ = ["BufferMemory", "ProcessMemory", "UserMemory"]


class UserMemory(Protocol):
    """What an ioctl's pointers point to."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes; MemslotError (EFAULT) if they cannot all be read."""

    def write(self, address: int, content: bytes) -> None:
        """Write all of ``content``; MemslotError (EFAULT) if not all of it can be written."""


class ProcessMemory:
    """The memory of this process, as ``process_memory`` reads and writes it.

    >>> import ctypes
    >>> memory = ProcessMemory()
    >>> buffer = ctypes.create_string_buffer(4)
    >>> memory.write(ctypes.addressof(buffer), b"abcd")
    >>> memory.read(ctypes.addressof(buffer), 4)
    b'abcd'
    >>> memory.read(8, 4)
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EFAULT: address 0x8: 4 bytes cannot be read
    """

    def __init__(self) -> None:
        self.read, self.write = read_memory, write_memory


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
