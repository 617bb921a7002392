"""What ``unfold.py`` works with, as arrays: the actions that Python has told it, and the memories that both make."""

from __future__ import annotations

from typing import Any

from .growing import Growing
from .rows import Rows
from .unfold import Unfolded, add_memory, move_memories

__all__ = ["Unfolding"]

_FULL = 0.7


class Unfolding:
    """Of one search. ``size``: how many values a memory has; 0 under ``stale``, whose moves Python makes."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._tree = rows, rows.tree
        self.size = 0 if rows.stale else len(rows.tree.start.values)
        self.first = Growing(1 << 10)
        """By own part its first action."""
        self._actions = [Growing(1 << 10) for _ in range(5)]
        self._effects = [Growing(1 << 10) for _ in range(2)]
        self._memories, self._places = Growing(max(self.size, 1) << 10), Growing(1 << 12)
        self._known = 0
        """How many memories both know."""
        self._told = [0, 0]

    def arrays(self) -> Unfolded:
        """For the compiled loop, until something grows."""
        columns = (self.first, *self._actions, *self._effects, self._memories, self._places)
        return Unfolded(*(column.data for column in columns))

    def learn(self) -> int:
        """Hand what Python knows to the compiled loop; how many memories there are. O(what is new)."""
        rows = self._rows
        tables: list[tuple[list[Growing], list[Any]]] = [(self._actions, rows.actions), (self._effects, rows.effects)]
        for k, (columns, told) in enumerate(tables):
            new = told[self._told[k] :]
            if new:
                for column, values in zip(columns, zip(*new, strict=True), strict=True):
                    column.put(self._told[k], values)
                self._told[k] = len(told)
        if self.size:
            while self._known < len(self._tree.by_number):
                self.make_room(1)
                values = self._tree.by_number[self._known].values
                self._memories.put(self._known * self.size, [rows.value(value) for value in values])
                add_memory(self._memories.data, self._places.data, self.size, self._known)
                self._known += 1
        return self._known

    def tell(self, count: int) -> None:
        """Hand the memories that the compiled loop made to Python. O(new ones)."""
        size, values = self.size, self._rows.values
        if count > self._known:
            for row in self._memories.data[self._known * size : count * size].reshape(-1, size).tolist():
                self._tree.memory(tuple([values[number] for number in row]))
            self._known = count

    def make_room(self, more: int) -> None:
        """Make room for ``more`` memories."""
        count = self._known + more
        while count * self.size > len(self._memories):
            self._memories.grow(2 * len(self._memories))
        if count > _FULL * len(self._places):
            self._places = Growing(2 * len(self._places))
            move_memories(self._memories.data, self._places.data, self.size, self._known)
