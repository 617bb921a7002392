"""The children of one region, found by address without looking at all of them.

QEMU walks all children of a container whenever it renders (``memory_region_get_flatview_root()`` and
``render_memory_region()``, ``system/memory.c``). Rendering only what a change touches needs the few children that
overlap a window: they are kept sorted by address, in chunks that know how far their longest child reaches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import InvariantError

if TYPE_CHECKING:
    from .region import MemoryRegion

__all__ = ["Subregions"]

CHUNK = 64
"""A chunk is cut in two when it has twice as many children."""


class Subregions:
    """Children by address; a child's ``addr``, ``size`` and ``serial`` must stay as they are while it is in here.

    ``enabled`` counts those that are enabled; whoever switches one keeps it.
    """

    __slots__ = ("_chunks", "_ends", "_firsts", "enabled")

    def __init__(self) -> None:
        self._chunks: list[list[tuple[int, int, MemoryRegion]]] = []
        self._firsts: list[tuple[int, int]] = []
        self._ends: list[int] = []
        self.enabled = 0

    def add(self, child: MemoryRegion) -> None:
        """O(√n) in practice: a chunk is found by bisection, and at most ``2 * CHUNK`` entries move."""
        entry = (child.addr, child.serial, child)
        key = (child.addr, child.serial)
        self.enabled += child.enabled
        if not self._chunks:
            self._chunks, self._firsts, self._ends = [[entry]], [key], [child.addr + child.size]
            return
        at = max(bisect_right(self._firsts, key) - 1, 0)
        chunk = self._chunks[at]
        chunk.insert(bisect_left(chunk, key, key=_key), entry)
        self._firsts[at] = _key(chunk[0])
        self._ends[at] = max(self._ends[at], child.addr + child.size)
        if len(chunk) >= 2 * CHUNK:
            self._chunks[at : at + 1] = [chunk[:CHUNK], chunk[CHUNK:]]
            self._firsts.insert(at + 1, _key(chunk[CHUNK]))
            self._ends[at : at + 1] = [_end(chunk[:CHUNK]), _end(chunk[CHUNK:])]

    def remove(self, child: MemoryRegion) -> None:
        """O(√n) in practice, as ``add``."""
        key = (child.addr, child.serial)
        at = bisect_right(self._firsts, key) - 1
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, key, key=_key)]
        self.enabled -= child.enabled
        if chunk:
            self._firsts[at], self._ends[at] = _key(chunk[0]), _end(chunk)
        else:
            del self._chunks[at], self._firsts[at], self._ends[at]

    def overlapping(self, start: int, end: int) -> list[MemoryRegion]:
        """The children that overlap ``[start, end)``, the one that wins last: ascending priority, then age. O(√n + k).

        Source of the order: ``memory_region_update_container_subregions()``: a child goes before the first of its
        priority or less, so that of equal ones the one added last wins.
        """
        hits = [
            child
            for chunk, (first, _), reach in zip(self._chunks, self._firsts, self._ends, strict=True)
            if first < end and reach > start
            for addr, _, child in chunk
            if addr < end and addr + child.size > start
        ]
        hits.sort(key=_rank)
        return hits

    def __iter__(self) -> Iterator[MemoryRegion]:
        """By address, then age."""
        return (child for chunk in self._chunks for _, _, child in chunk)

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def check(self) -> None:
        """Raise InvariantError if order, reach or counts do not hold. O(n)."""
        entries = [entry for chunk in self._chunks for entry in chunk]
        if [_key(entry) for entry in entries] != sorted(_key(entry) for entry in entries):
            raise InvariantError("subregions: children are not in the order of their addresses")
        for chunk, first, reach in zip(self._chunks, self._firsts, self._ends, strict=True):
            if not chunk or first != _key(chunk[0]) or reach != _end(chunk):
                raise InvariantError("subregions: a chunk does not know its first child or its reach")
        if any(addr != child.addr or serial != child.serial for addr, serial, child in entries):
            raise InvariantError("subregions: a child has moved without being taken out")
        if self.enabled != sum(child.enabled for _, _, child in entries):
            raise InvariantError("subregions: enabled children are not counted right")


def _key(entry: tuple[int, int, MemoryRegion]) -> tuple[int, int]:
    return entry[0], entry[1]


def _rank(child: MemoryRegion) -> tuple[int, int]:
    return child.priority, child.serial


def _end(chunk: list[tuple[int, int, MemoryRegion]]) -> int:
    return max(addr + child.size for addr, _, child in chunk)
