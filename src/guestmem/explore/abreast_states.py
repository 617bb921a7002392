"""The search over states in several threads of one process, which share its table and its rows (``abreast.py``).

The same states, transitions, levels and ends as with one; the states of a level may be numbered in another order, so
of several schedules as short as each other another one may be told. Rows are made, and Python is asked, by one thread.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from . import abreast, asking
from .machine import Machine
from .outcome import Budget, Outcome
from .states import States

__all__ = ["AbreastStates"]

_FEW = 1 << 12
_FULL = 0.7
_COUNTS = 64
"""Words of a thread's counts: some cache lines."""


class AbreastStates(States):
    """As ``States``, in ``threads`` threads. ``few``: so many states of a level, or fewer, are left to one thread."""

    def __init__(self, machine: Machine, outcome: Outcome, *, threads: int, few: int = _FEW) -> None:
        super().__init__(machine, outcome)
        self.threads, self.few = threads, few
        self.put_off = 0
        """States that one thread had to do; one that is put off again counts again."""
        self.shared = 0
        """States that the threads did."""
        self._common: Any = np.zeros(16, np.uint64)
        self._mine: list[abreast.Mine] = []
        self._others: ThreadPoolExecutor | None = None

    def run(self, budget: Budget) -> Outcome:
        """Search. Raises Reshaped when a word turns out to be shared."""
        with ThreadPoolExecutor(self.threads) as self._others:
            return super().run(budget)

    def _expand(self, budget: Budget) -> bool:
        if not self._again:
            hi = self._upto()
            if hi - self.done > self.few:
                self._abreast(hi)
                return False
        off = len(self._again[-1]) if self._again else 0
        before = self.done
        over = super()._expand(budget)
        self.put_off += off or self.done - before
        return over

    def _abreast(self, hi: int) -> None:
        """One round: expand states up to ``hi``, or until there is no more room."""
        size, width, block = hi - self.done, self.width, int(abreast.BLOCK)
        self._room_for_states(4 * block * self.threads)
        room = min(len(self._states) // width, len(self._parents), int(_FULL * len(self._table)))
        while len(self._mine) < self.threads or len(self._mine[0].off) < size:
            self._mine = [self._own(size) for _ in range(self.threads)]
        self._common[abreast.CURSOR], self._common[abreast.COUNT] = self.done, self.count
        known = [self._all()]
        for mine in self._mine:
            np.asarray(mine.counts)[:] = [self.count, self.count, *[0] * (_COUNTS - 2)]
        assert self._others is not None
        rounds = [self._others.submit(_expand_known, known, mine, hi, room) for mine in self._mine]
        for each in rounds:
            each.result()
        known.clear()  # a thread may hold its arguments after its result, and an array that is held cannot grow
        before, self.done = self.done, min(int(self._common[abreast.CURSOR]), hi)
        self._close_up()
        off = np.concatenate([mine.off[: int(mine.counts[abreast.OFF])] for mine in self._mine])
        self.shared += self.done - before - len(off)
        if len(off):
            self._again.append(off)
        self._counts[asking.POINTS] += np.uint64(sum(int(mine.counts[abreast.POINTS]) for mine in self._mine))

    def _close_up(self) -> None:
        """Numbers that a thread took and had no state for go to the last states: there are no holes."""
        left = [(int(mine.counts[abreast.NEXT]), int(mine.counts[abreast.END])) for mine in self._mine]
        holes = np.concatenate([np.arange(first, end, dtype=np.uint64) for first, end in left])
        top = max(end for _, end in left)
        self.count = top - len(holes)
        old = np.setdiff1d(np.arange(self.count, top, dtype=np.uint64), holes)
        new = holes[holes < self.count]
        abreast.move(self._states.data, self._parents.data, self._table.data, self.width, old, new)
        self._counts[asking.STATES] = self.count

    def _own(self, size: int) -> abreast.Mine:
        off, row = np.zeros(2 * size, np.uint32), np.zeros(self.width, np.uint32)
        slots: Any = np.zeros(self.machine.threads, np.uint64)
        counts: Any = np.zeros(_COUNTS, np.uint64)
        return abreast.Mine(off, row, slots, counts)

    def _all(self) -> abreast.Known:
        after, own, info = self._moves
        table: Any = self._table.data.view(np.uint64)
        return abreast.Known(
            self._states.data, self._parents.data, table, self._common, self._keys.data, self._values.data, after.data,
            own.data, info.data, self._kinds.data, self._points.data, self._awake.data, self._rise.data,
            self._alone.data, self._looks.data, self._views.data, self._pair_keys.data, self._pair_values.data,
            self._options,
        )  # fmt: skip


def _expand_known(known: list[abreast.Known], mine: abreast.Mine, hi: int, room: int) -> None:
    abreast.expand_known(known[0], mine, hi, room)
