"""A flat view: what an address space looks like once all regions are laid over each other.

Source: ``struct FlatRange``, ``can_merge()``, ``flatrange_equal()``, QEMU ``system/memory.c``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InvariantError

if TYPE_CHECKING:
    from .region import MemoryRegion

__all__ = ["FlatRange", "FlatView", "can_merge", "same_range", "simplify"]


class FlatRange(NamedTuple):
    """Bytes ``[start, end)`` of an address space, taken by ``region`` from its byte ``offset`` on.

    ``readonly``, ``nonvolatile`` and ``unmergeable`` are inherited from every container and alias on the way;
    ``dirty_log_mask`` and ``romd_mode`` are the region's own. ``path`` is the way itself, kept only for unmergeable
    ranges: it tells two that touch from two halves of one.
    """

    start: int
    end: int
    region: MemoryRegion
    offset: int
    readonly: bool
    nonvolatile: bool
    unmergeable: bool
    dirty_log_mask: int
    romd_mode: bool
    path: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start

    def __repr__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x}) {self.kind} {self.region.name} @{self.offset:#x}"

    @property
    def kind(self) -> str:
        """As ``info mtree -f`` names it: "rom" if the range is read-only, else "ramd", "romd", "rom", "ram", "i/o"."""
        return "rom" if self.readonly else self.region.type_name


def can_merge(a: FlatRange, b: FlatRange) -> bool:
    """Whether ``b`` goes on where ``a`` ends, in the same region and with the same attributes."""
    return (
        a.end == b.start
        and a.region is b.region
        and a.offset + (a.end - a.start) == b.offset
        and a.dirty_log_mask == b.dirty_log_mask
        and a.romd_mode == b.romd_mode
        and a.readonly == b.readonly
        and a.nonvolatile == b.nonvolatile
        and not a.unmergeable
        and not b.unmergeable
    )


def same_range(a: FlatRange, b: FlatRange) -> bool:
    """Whether two ranges are one for a listener: all but ``dirty_log_mask`` is equal."""
    return a.region is b.region and a[:2] == b[:2] and a[3:7] == b[3:7] and a.romd_mode == b.romd_mode


def simplify(ranges: Iterable[FlatRange]) -> list[FlatRange]:
    """Neighbours that can be merged are one; ``ranges`` are ascending and disjoint. O(n)."""
    done: list[FlatRange] = []
    for each in ranges:
        if done and can_merge(done[-1], each):
            done[-1] = done[-1]._replace(end=each.end)
        else:
            done.append(each)
    return done


class FlatView(Sequence[FlatRange]):
    """Ranges by ascending address, disjoint, merged; immutable."""

    __slots__ = ("_starts", "ranges", "root")

    def __init__(self, root: MemoryRegion | None, ranges: list[FlatRange], starts: list[int] | None = None) -> None:
        self.root, self.ranges = root, ranges
        self._starts = [each.start for each in ranges] if starts is None else starts

    def find(self, addr: int) -> FlatRange | None:
        """The range that has ``addr``, or None where nothing is. O(log n)."""
        i = bisect_right(self._starts, addr) - 1
        return self.ranges[i] if i >= 0 and addr < self.ranges[i].end else None

    def overlapping(self, start: int, end: int) -> list[FlatRange]:
        """The ranges that overlap ``[start, end)``, ascending. O(log n + k)."""
        first, last = self.place(start, end)
        return self.ranges[first:last]

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Indices of the first range that overlaps ``[start, end)``, and after the last. O(log n)."""
        first = bisect_right(self._starts, start)
        if first and self.ranges[first - 1].end > start:
            first -= 1
        last = first
        if start < end:
            last = max(bisect_right(self._starts, end - 1), first)
        return first, last

    def spliced(self, first: int, last: int, ranges: list[FlatRange]) -> FlatView:
        """A new view with ``ranges`` in the place of ``self[first:last]``. O(n), at the speed of a copy."""
        new, starts = self.ranges.copy(), self._starts.copy()
        new[first:last] = ranges
        starts[first:last] = [each.start for each in ranges]
        return FlatView(self.root, new, starts)

    def check(self) -> None:
        """Raise InvariantError if ranges are out of order, empty, overlap, or could be merged. O(n)."""
        if self._starts != [each.start for each in self.ranges]:
            raise InvariantError("flat view: its index does not fit its ranges")
        for each in self.ranges:
            if each.start >= each.end:
                raise InvariantError(f"flat view: {each!r} is empty")
        for a, b in zip(self.ranges, self.ranges[1:], strict=False):
            if a.end > b.start:
                raise InvariantError(f"flat view: {a!r} overlaps {b!r}")
            if can_merge(a, b):
                raise InvariantError(f"flat view: {a!r} and {b!r} should be one")

    def __getitem__(self, index: int) -> FlatRange:  # type: ignore[override]
        return self.ranges[index]

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self) -> Iterator[FlatRange]:
        return iter(self.ranges)

    def __repr__(self) -> str:
        return f"FlatView of {self.root.name if self.root else '(none)'}: {len(self.ranges)} ranges"
