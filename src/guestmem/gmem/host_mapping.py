"""The host's mapping of a guest_memfd: reads and writes that end in SIGBUS where the page's state bars the host.

By API, SIGBUS is an exception that names page and state. With ``real=True`` the memory is mapped a second time, and a
raw access through ``address`` to a barred page ends the process as on the kernel's guest_memfd. Source:
``kvm_gmem_mmap()``, ``kvm_gmem_fault_user_mapping()``, Linux 6.18.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..compiled import own
from ..errors import SigbusError, UsageError
from ..units import PAGE_SIZE
from . import layout as at
from .backing import HostWindow
from .checks import check_integers
from .fault import host_access, host_fault
from .invalidate_lock import write_lock, write_unlock

if TYPE_CHECKING:
    from .inode import Inode

__all__ = ["HostMapping", "touch"]

_OK, _ABSENT, _LAST = int(at.OK), int(at.ABSENT), int(at.LAST)
_WHY = {int(at.END_OF_FILE): "past the end of the file", int(at.LARGE): "in a huge folio", int(at.POISON): "poisoned"}


def sigbus(inode: Inode, page: int, status: int) -> SigbusError:
    """What a status of a host fault is to the host."""
    state = inode.generation.NAMES.get(inode.states.get(page), "") if page < inode.npages else ""
    return SigbusError(page, _WHY.get(status, state))


def touch(inode: Inode, page: int) -> None:
    """Map page ``page`` for the host; SigbusError, or GuestMemfdError (ENOMEM) if there is no memory for it."""
    while True:
        status = int(host_fault(inode.words, inode.states.words, page, False))
        if status == _ABSENT:
            inode.commit(page)
        elif status == _LAST:
            inode.generation.last_put(inode, page)
            return
        elif status == _OK:
            return
        else:
            raise sigbus(inode, page, status)


class HostMapping:
    """Bytes [offset, offset + size) of the file, as a process of the host has them mapped; shared, from ``mmap()``.

    Neither is checked against the file's size: what lies past its end is SIGBUS when it is touched.
    """

    def __init__(self, inode: Inode, offset: int, size: int, *, real: bool = False) -> None:
        check_integers(offset=offset, size=size)
        if offset < 0 or size <= 0 or offset % PAGE_SIZE:
            raise UsageError(f"mapping: offset {offset:#x} is not a page's, or size {size:#x} is not positive")
        self._inode, self.offset, self.size = inode, offset, size
        self._out, self._lock = own(1), threading.Lock()
        self._window: HostWindow | None = None
        self.closed = False
        inode.mappings += 1
        if real:
            write_lock(inode.words)
            try:
                self._window = HostWindow(inode.backing, offset, -(-size // PAGE_SIZE) * PAGE_SIZE)
                last = min(offset + size - 1, inode.size - 1) // PAGE_SIZE
                if offset < inode.size:
                    inode.window_follows(offset // PAGE_SIZE, last, [self._window])
                inode.windows.append(self._window)
            except BaseException:
                inode.mappings -= 1
                if self._window is not None:
                    self._window.close()
                raise
            finally:
                write_unlock(inode.words)

    @property
    def address(self) -> int:
        """Where raw accesses of this process go; UsageError unless the mapping is real."""
        if self._window is None:
            raise UsageError("mapping: it is not real: ask for one with mmap(real=True)")
        return self._window.address

    def _check(self, at_: int, size: int) -> None:
        if self.closed:
            raise UsageError("mapping: it is closed")
        if at_ < 0 or size < 0 or at_ + size > self.size:
            raise UsageError(f"mapping: [{at_:#x}, {at_ + size:#x}) is not within its {self.size:#x} bytes")

    def read(self, at_: int, size: int) -> bytes:
        """Bytes from ``at_`` on, in the mapping; SigbusError at the first page that may not be touched."""
        self._check(at_, size)
        start, data = self.offset + at_, bytearray()
        for word in range(start & ~7, start + size, 8):
            data += self._access(word, 0, write=False).to_bytes(8, "little")
        return bytes(data[start & 7 : (start & 7) + size])

    def write(self, at_: int, data: bytes) -> None:
        """Write bytes from ``at_`` on; those before a page that may not be touched are written, as by a process."""
        self._check(at_, len(data))
        start, end = self.offset + at_, self.offset + at_ + len(data)
        place = start
        while place < end:
            word, first = place & ~7, place & 7
            piece = data[place - start : min(end - start, place - start + 8 - first)]
            held = b"\0" * 8 if len(piece) == 8 else self._access(word, 0, write=False).to_bytes(8, "little")
            value = held[:first] + piece + held[first + len(piece) :]
            self._access(word, int.from_bytes(value, "little"), write=True)
            place += len(piece)

    def _access(self, offset: int, value: int, *, write: bool) -> int:
        inode, page = self._inode, offset // PAGE_SIZE
        with self._lock, inode.python_host:
            while True:
                status = int(host_access(inode.words, inode.states.words, 0, offset, value, write, False, self._out))
                if status == _OK:
                    return int(self._out[0])
                if status == _LAST:
                    inode.generation.last_put(inode, page)
                elif status == _ABSENT:
                    inode.commit(page)
                else:
                    raise sigbus(inode, page, status)

    def __getitem__(self, at_: int) -> int:
        return self.read(at_, 1)[0]

    def __setitem__(self, at_: int, value: int) -> None:
        self.write(at_, bytes([value]))

    def __len__(self) -> int:
        return self.size

    def close(self) -> None:
        """Unmap it. A second close does nothing."""
        if self.closed:
            return
        self.closed = True
        self._inode.mappings -= 1
        if self._window is not None:
            self._inode.windows.remove(self._window)
            self._window.close()
        self._inode.unmapped_if_unused()

    def __enter__(self) -> HostMapping:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
