"""Which bytes of which views a change of one region can alter: the region's windows, seen through all above it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .region import MemoryRegion

__all__ = ["Touched", "merged"]

MAX_STEPS = 4096
"""A region that is seen in more places than that has every view rendered whole: no less right, and quicker."""


class Touched:
    """Windows by root, collected over a transaction; outside them no view can have changed.

    ``roots``: the regions that views are rendered from. A change is added as it is made, before and after it if it
    moves something. Above a disabled region nothing can change: enabling that one touches all of it.
    """

    __slots__ = ("all", "roots", "windows")

    def __init__(self, roots: Collection[MemoryRegion | None]) -> None:
        self.roots = roots
        self.all = False
        self.windows: dict[MemoryRegion, list[tuple[int, int]]] = {}

    def add(self, region: MemoryRegion) -> None:
        """All of ``region``. O(ways up from it)."""
        if self.all or len(self.roots) == 1:
            return  # all is rendered anew in any case, or there is no view yet but that of nothing
        stack = [(region, 0, region.size)]
        seen = set(stack)
        while stack:
            if len(seen) > MAX_STEPS:
                self.all = True
                return
            at, low, high = stack.pop()
            if at in self.roots:
                self.windows.setdefault(at, []).append((at.addr + low, at.addr + high))
            above = [
                (alias, max(low - alias.alias_offset, 0), min(high - alias.alias_offset, alias.size))
                for alias in at.aliases
            ]
            if at.container is not None:
                container = at.container
                above.append((container, max(low + at.addr, 0), min(high + at.addr, container.size)))
            for step in above:
                if step[1] < step[2] and step[0].enabled and step not in seen:
                    seen.add(step)
                    stack.append(step)

    def clear(self) -> None:
        """Begin again."""
        self.all = False
        self.windows = {}


def merged(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Windows ascending, those that overlap or touch as one. O(n log n).

    >>> merged([(8, 9), (0, 2), (2, 4), (3, 5)])
    [(0, 5), (8, 9)]
    """
    done: list[tuple[int, int]] = []
    for low, high in sorted(windows):
        if done and low <= done[-1][1]:
            done[-1] = (done[-1][0], max(done[-1][1], high))
        else:
            done.append((low, high))
    return done
