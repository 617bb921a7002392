"""Host memory below 2**40: where a table's descriptors, and emulators that follow them, can reach it.

An mmap with an address hint, which the kernel honours when the place is free; where it landed is verified, and other
places are tried. Shared (a memory file), so that other processes can map it. Unmapped when its last view is gone.
Why 2**40: Unicorn's x86 MMU knows no larger physical addresses, and a small Arm has 40 bits.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
import weakref
from typing import Any

from .errors import GuestmemError
from .units import format_size

__all__ = ["LOW_END", "low_memory"]

LOW_END = 1 << 40
"""First byte that is not low."""
_FIRST = 1 << 32  # above a fixed-place program and its heap, below where the kernel puts mappings of its own choice
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value
_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_lock = threading.Lock()
_next = _FIRST


def _map_at(hint: int, size: int, fd: int) -> int:
    """Map near ``hint``: the address, or 0 if the memory would not be low."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address: int = _libc.mmap(hint, size, protection, mmap.MAP_SHARED | _MAP_NORESERVE, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise GuestmemError(f"low memory: cannot map {format_size(size)}: {os.strerror(number)}")
    if address != hint:
        _libc.munmap(address, size)
        return 0
    return address


def _place(size: int, align: int, fd: int) -> int:
    """Map somewhere low: first where nothing of ours was yet, then anywhere, for what was unmapped is free again."""
    global _next  # noqa: PLW0603 - one address space a process
    step = -(-size // align) * align
    with _lock:
        ahead = range(-(-_next // align) * align, LOW_END, step)
        again = range(-(-_FIRST // align) * align, LOW_END, -(-max(step, LOW_END >> 12) // align) * align)
        for hint in itertools.chain(ahead, again):
            if hint + size <= LOW_END and (address := _map_at(hint, size, fd)):
                _next = max(_next, address + step)
                return address
    raise GuestmemError(f"low memory: no room for {format_size(size)} below {LOW_END:#x}")


def low_memory(size: int, align: int = 1 << 21, *, name: str = "guestmem") -> tuple[int, memoryview, int]:
    """Zeroed shared memory of ``size`` bytes (whole pages) at a multiple of ``align``: address, bytes, descriptor.

    All of it lies below 2**40. The caller closes the file descriptor; another process that gets it can map the same
    memory. Nothing is committed until it is touched. Raises GuestmemError if there is no room.

    >>> address, view, fd = low_memory(0x10000)
    >>> address + 0x10000 <= LOW_END, address % (1 << 21), len(view)
    (True, 0, 65536)
    >>> os.close(fd)
    """
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, size)
        address = _place(size, align, fd)
    except OSError as error:
        os.close(fd)
        raise GuestmemError(f"low memory: cannot make {format_size(size)}: {error.strerror}") from None
    except BaseException:
        os.close(fd)
        raise
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False  # threads may run until the very end
    return address, memoryview(memory).cast("B"), fd
