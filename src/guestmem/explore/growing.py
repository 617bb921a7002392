"""Arrays that grow without a copy in the way: private anonymous memory, moved by the kernel (``mremap``)."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

__all__ = ["Growing"]

_PAGE = mmap.PAGESIZE


class Growing:
    """A zeroed array of 32- or 64-bit numbers; ``data`` is it now. Pages that were never touched take no memory."""

    def __init__(self, size: int, bits: int = 32) -> None:
        self._type = np.uint32 if bits == 32 else np.uint64
        self._map = mmap.mmap(-1, self._bytes(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.data: Any = np.frombuffer(self._map, self._type)

    def _bytes(self, size: int) -> int:
        return -(-max(size, 1) * np.dtype(self._type).itemsize // _PAGE) * _PAGE

    def __len__(self) -> int:
        return len(self.data)

    def grow(self, size: int) -> None:
        """Make room for at least so many numbers; what is there stays. Nobody may hold ``data``."""
        if size > len(self.data):
            self.data = None
            self._map.resize(self._bytes(size))
            self.data = np.frombuffer(self._map, self._type)

    def put(self, first: int, values: Any) -> None:
        """Write values from index ``first`` on, with room for twice as many."""
        last = first + len(values)
        if last > len(self.data):
            self.grow(2 * last)
        self.data[first:last] = values
