"""From a tree of regions to the ranges that are seen, front to back: what is nearer takes first, the rest fills gaps.

The result is that of ``render_memory_region()`` (QEMU ``system/memory.c``). QEMU looks for gaps among what was
painted; here the gaps themselves are kept, so that a subtree that lies wholly behind others is not entered.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .flatview import FlatRange, simplify

if TYPE_CHECKING:
    from .region import MemoryRegion

__all__ = ["ADDRESS_END", "MAX_VISITS", "render", "render_raw"]

ADDRESS_END = 1 << 64
MAX_VISITS = 4_000_000
"""Aliases of aliases can make a tree of n regions show 2ⁿ times; past so many visits a tree is refused."""

_new = tuple.__new__


def render(root: MemoryRegion | None, start: int = 0, end: int = ADDRESS_END) -> list[FlatRange]:
    """What is seen of ``root`` in ``[start, end)``, merged. O(v log v) for v regions on all ways through the tree."""
    return simplify(render_raw(root, start, end))


def render_raw(root: MemoryRegion | None, start: int = 0, end: int = ADDRESS_END) -> list[FlatRange]:
    """As ``render``, but each way through the tree keeps ranges of its own."""
    if root is None or start >= end:
        return []
    free_starts, free_ends = [start], [end]
    painted: list[FlatRange] = []
    visits = 0
    # region, address of its container, window, inherited attributes, way, and whether its children are done
    stack: list[tuple[MemoryRegion, int, int, int, bool, bool, bool, Any, bool]] = [
        (root, 0, start, end, False, False, False, None, False)
    ]
    while stack and free_starts:
        region, base, low, high, readonly, nonvolatile, unmergeable, way, children_done = stack.pop()
        if not children_done:
            if not region.enabled:
                continue
            visits += 1
            if visits > MAX_VISITS:
                raise UsageError(f"region {root.name}: more than {MAX_VISITS} ways lead through its aliases")
            base += region.addr
            low = max(low, base)
            high = min(high, base + region.size)
            if low >= high:
                continue
            gap = bisect_right(free_ends, low)
            if gap == len(free_ends) or free_starts[gap] >= high:
                continue  # all of it is behind others
            readonly = readonly or region.readonly
            nonvolatile = nonvolatile or region.nonvolatile
            unmergeable = unmergeable or region.unmergeable
            way = (way, region)
            target = region.alias
            if target is not None:
                base -= target.addr + region.alias_offset
                stack.append((target, base, low, high, readonly, nonvolatile, unmergeable, way, False))
                continue
            if region.subregions:
                if region.terminates:
                    stack.append((region, base, low, high, readonly, nonvolatile, unmergeable, way, True))
                stack.extend(
                    (child, base, low, high, readonly, nonvolatile, unmergeable, way, False)
                    for child in region.subregions.overlapping(low - base, high - base)
                )
                continue
            if not region.terminates:
                continue
        first = last = bisect_right(free_ends, low)
        mask, romd = region.effective_log_mask, region.romd_mode
        path = _path(way) if unmergeable else None
        rest_starts, rest_ends = [], []
        while last < len(free_starts) and free_starts[last] < high:
            begin, stop = free_starts[last], free_ends[last]
            if begin < low:
                rest_starts.append(begin)
                rest_ends.append(low)
                begin = low
            if stop > high:
                rest_starts.append(high)
                rest_ends.append(stop)
                stop = high
            fields = (begin, stop, region, begin - base, readonly, nonvolatile, unmergeable, mask, romd, path)
            painted.append(_new(FlatRange, fields))
            last += 1
        free_starts[first:last] = rest_starts
        free_ends[first:last] = rest_ends
    painted.sort(key=_start)
    return painted


def _start(each: FlatRange) -> int:
    return each[0]


def _path(way: Any) -> tuple[int, ...]:
    found = []
    while way is not None:
        way, region = way
        found.append(region.number)
    return tuple(found)
