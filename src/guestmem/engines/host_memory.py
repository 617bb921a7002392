"""Real host memory for recorded host addresses: one sparse memfd, mapped once, aliases kept.

The host ranges of a trace are joined where they overlap; each joined range becomes a part of one memory file, so two
slots that shared host memory in the recording share it here. Nothing is committed until it is touched, so a guest of
1 TiB costs what its load touches.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import os
from collections.abc import Iterable

from ..errors import GuestmemError, UsageError
from ..low_memory import low_memory
from ..units import PAGE_SIZE, format_size

__all__ = ["HostMemory"]

_MAP_NORESERVE = 0x4000
_LARGE, _GIB = 1 << 21, 1 << 30


class HostMemory:
    """Memory behind the recorded host ranges ``[start, end)``, in bytes.

    ``low``: below 2**40, for descriptors and emulators that follow them; then each range also lies as it did modulo
    2 MiB (from 1 GiB on: modulo 1 GiB), so that the same large pages fit. GuestmemError if there is no such room.

    >>> memory = HostMemory([(0x7f0000000000, 0x7f0000002000), (0x7f0000001000, 0x7f0000003000)])
    >>> memory.size
    12288
    >>> memory.translate(0x7f0000001008) - memory.translate(0x7f0000001000)
    8
    >>> memory.close()
    """

    def __init__(self, ranges: Iterable[tuple[int, int]], *, low: bool = False) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(ranges):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)
        self._offsets = []
        self.size = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            if low:
                self.size += (start - self.size) % (_GIB if end - start >= _GIB else _LARGE)
            self._offsets.append(self.size)
            self.size += end - start
        self.size = max(self.size, PAGE_SIZE)
        self._map: mmap.mmap | memoryview
        if low:
            self.address, self._map, fd = low_memory(self.size, _GIB if self.size >= _GIB else _LARGE)
            os.close(fd)
            return
        fd = os.memfd_create("guestmem")
        try:
            os.ftruncate(fd, self.size)
            self._map = mmap.mmap(fd, self.size, flags=mmap.MAP_SHARED | _MAP_NORESERVE)
        except (OSError, OverflowError, ValueError) as error:
            raise GuestmemError(f"host memory: cannot map {format_size(self.size)}: {error}") from None
        finally:
            os.close(fd)
        self._view = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._view)

    def translate(self, hva: int) -> int:
        """The real address for a recorded one; UsageError if it lies in no range. O(log ranges)."""
        at = bisect.bisect_right(self._starts, hva) - 1
        if at < 0 or hva >= self._ends[at]:
            raise UsageError(f"hva: {hva:#x} is in none of the {len(self._starts)} host ranges")
        return self.address + self._offsets[at] + hva - self._starts[at]

    def word(self, address: int) -> int:
        """The 8 bytes at a real address."""
        return ctypes.c_uint64.from_address(address).value

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` at a real address."""
        ctypes.memmove(address, data, len(data))

    def close(self) -> None:
        """Give the memory back, once. No vCPU may run any more."""
        if isinstance(self._map, memoryview):
            self._map.release()  # unmapped with its last view
        elif not self._map.closed:
            del self._view
            self._map.close()
