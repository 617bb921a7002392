"""The memory of this process by calls that can fail: EFAULT where a plain access would end the process.

A guest decides what a VMM reads and writes, and host memory behind a slot may be unmapped, protected, or past the end
of its file. Up to a page goes through a scratch file, whose ``pread`` and ``pwrite`` copy to and from user memory; more
goes through ``process_vm_readv`` and ``process_vm_writev`` on this process, which pin pages first: dearer to begin
with, cheaper a byte. Both fail where KVM_RUN would say EFAULT. Source: Linux 6.18, ``mm/shmem.c``,
``mm/process_vm_access.c``. Figures: ``benchmarks/bench_access.py``.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Any

from .errors import MemslotError

__all__ = ["read_memory", "write_memory"]

_SMALL = 4096
_AT_ONCE = 1 << 30
_libc: Any = ctypes.CDLL(None, use_errno=True)
_pread, _pwrite = _libc.pread, _libc.pwrite
for _function in (_pread, _pwrite):
    _function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
    _function.restype = ctypes.c_ssize_t
_readv, _writev = _libc.process_vm_readv, _libc.process_vm_writev
for _function in (_readv, _writev):
    _function.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
        *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
    ]
    _function.restype = ctypes.c_ssize_t


class _Scratch:
    """A page of a memory file, mapped here."""

    __slots__ = ("fd", "page")

    def __init__(self) -> None:
        self.fd = -1
        self.fd = os.memfd_create("guestmem-scratch", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _SMALL)
        self.page = mmap.mmap(self.fd, _SMALL)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


_spare: list[_Scratch] = []
"""Pages that nobody uses just now: one a thread that ever was at it at the same time."""
os.register_at_fork(after_in_child=_spare.clear)  # the files are the parent's, too


def _scratch() -> _Scratch | None:
    """A page to go through; None where the kernel gives none."""
    try:
        return _spare.pop()
    except IndexError:
        try:
            return _Scratch()
        except OSError:
            return None


def read_memory(address: int, size: int) -> bytes:
    """``size`` bytes of this process from ``address`` on; MemslotError (EFAULT) unless all can be read. O(size).

    No bytes can be read anywhere: the kernel's ``access_ok()`` takes an empty range at any address.

    >>> held = ctypes.create_string_buffer(b"abcd")
    >>> read_memory(ctypes.addressof(held), 4)
    b'abcd'
    >>> read_memory(8, 4)
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EFAULT: address 0x8: 4 bytes cannot be read
    """
    if not size:
        return b""
    if not 0 <= address < 1 << 63:
        raise _fault(address, size, "read")
    if size <= _SMALL and (scratch := _scratch()) is not None:
        copied = _pwrite(scratch.fd, address, size, 0)
        content = scratch.page[:size]
        _spare.append(scratch)
        if copied != size:
            raise _fault(address, size, "read")
        return content
    try:
        buffer = ctypes.create_string_buffer(size)
        done = _copy(_readv, ctypes.addressof(buffer), address, size)
        content = buffer.raw[:done]
    except (MemoryError, OverflowError):
        raise MemslotError(errno.ENOMEM, f"address {address:#x}: no memory for a copy of {size:#x} bytes") from None
    if done == size:
        return content
    try:
        rest = [read_memory(address + place, min(_SMALL, size - place)) for place in _pages(done, size)]
    except MemslotError:
        raise _fault(address, size, "read") from None
    return b"".join([content, *rest])


def write_memory(address: int, content: bytes) -> None:
    """Write ``content`` at ``address``; MemslotError (EFAULT) unless all can be written. O(size).

    Where it fails in the middle, the pages before are written, as by the kernel's own copies.
    """
    size = len(content)
    if not size:
        return
    if not 0 <= address < 1 << 63:
        raise _fault(address, size, "written")
    if size <= _SMALL and (scratch := _scratch()) is not None:
        scratch.page[:size] = content
        copied = _pread(scratch.fd, address, size, 0)
        _spare.append(scratch)
        if copied != size:
            raise _fault(address, size, "written")
        return
    done = _copy(_writev, _address_of(content), address, size)
    try:
        for place in _pages(done, size):
            write_memory(address + place, content[place : place + _SMALL])
    except MemslotError:
        raise _fault(address, size, "written") from None


def _address_of(content: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0


def _pages(done: int, size: int) -> range:
    """Where small pieces go on: what cannot be pinned (no right to read, secretmem) can be copied all the same."""
    if done < size <= _SMALL:  # it was a small piece
        raise MemslotError(errno.EFAULT, "it cannot be pinned")
    return range(done, size, _SMALL)


def _copy(function: Any, local: int, remote: int, size: int) -> int:
    """How many bytes were copied, up to the first that could not be."""
    done = 0
    while done < size:
        part = min(size - done, _AT_ONCE)
        pairs = (ctypes.c_uint64 * 4)(local + done, part, remote + done, part)
        place = ctypes.addressof(pairs)
        copied = function(os.getpid(), place, 1, place + 16, 1, 0)
        if copied <= 0:
            break
        done += copied
    return done


def _fault(address: int, size: int, what: str) -> MemslotError:
    return MemslotError(errno.EFAULT, f"address {address:#x}: {size} bytes cannot be {what}")
