"""The search over states by hash compaction: of a state that was expanded, only half a hash is kept (``hashed.py``).

At most 4.7 bytes a state once the table is full, and the states of two levels. Two states may be taken for one, so the
search is never complete; it says the probability. Paths are not kept: what is found is looked for again by ``States``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .asking import ALL, PASSED
from .growing import Growing
from .hashed import add_first_hash
from .machine import Machine
from .outcome import Budget, Outcome
from .states import States

__all__ = ["CompactStates"]

_FULL = 0.85
_BITS = 32


class CompactStates(States):
    """As ``States``, with a table of ``mib`` MiB. Stops at the first finding; looks for no livelocks of states.

    ``bits``: of each hash that are compared.
    """

    def __init__(self, machine: Machine, outcome: Outcome, *, mib: float, bits: int = _BITS) -> None:
        self._tags = (1 << bits) - 1
        self._places = min(max(int(mib * (1 << 20)) // 4, 1 << 10), (1 << 32) - 1)
        super().__init__(machine, outcome)

    @property
    def size(self) -> int:
        """Bytes that the table takes, and the states of two levels."""
        return 4 * (self.count * self.width + len(self._table))

    def _begin(self, first: list[int]) -> None:
        self._table = Growing(self._places)
        self._options[10] = self._tags
        row = np.array(first, np.uint32)
        add_first_hash(self._states.data, self._table.data, row, self.width, self._tags, self._counts)

    def _level(self) -> None:
        """A level is over: forget its states."""
        gone, width, states = self.level_end, self.width, self._states.data
        states[: (self.count - gone) * width] = states[gone * width : self.count * width]
        self.count -= gone
        self.done = self.level_end = 0
        self._counts[0] = self.count
        super()._level()

    def _found_so_far(self) -> int:
        return int(self._counts[ALL])

    def _room_for_states(self, most: int) -> None:
        while (self.count + most) * self.width > len(self._states):
            self._states.grow(2 * len(self._states))

    def _is_full(self) -> bool:
        full = bool(self._counts[ALL] + self._most > _FULL * len(self._table))
        if full:
            self.outcome.stopped = "the table of hashes is full"
        return full

    def _is_over(self, budget: Budget) -> None:
        """The search came to its end."""
        del budget
        outcome = self.outcome
        # How many others new states pass by: as counted, and as expected of linear probing (Knuth, volume 3, 6.4).
        load = float(self._counts[ALL]) / len(self._table)
        passed = max(float(self._counts[PASSED]), len(self._table) / 2 * (1 / (1 - load) - 1 - load))
        left_out = min(passed / self._tags, 1.0)
        outcome.stopped = f"by hashes: some state was left out with a probability of at most {left_out:.2g}"
        if self.machine.tree.keys is not None and self.machine.tree.cyclic():
            outcome.loops = True
            outcome.note = "whether there are livelocks was not looked at"

    def _arrived(self, found: list[int], budget: Budget) -> bool:
        del found
        return self._again_whole(budget)

    def _end(self, index: int, budget: Budget) -> bool:
        state = self.state(index)
        if self.judge.ended(state) is not None:
            return self._again_whole(budget)
        self.outcome.finals.add(self.judge.end(state))
        return False

    def _again_whole(self, budget: Budget) -> bool:
        """Something is wrong: search as far once more, with all states, for it and the schedule that leads there."""
        again = replace(self.outcome, distinct=0, points=0, depth=0, seconds=0.0, findings=[], finals=set())
        States(self.machine, again).run(budget.without_limits())
        if not again.findings:
            self.outcome.note = "something is wrong, but its schedule was not found"
            self.outcome.stopped = again.stopped or "finding"
            return True
        for finding in again.findings:
            self.outcome.add(finding)
        self.outcome.stopped = "finding"
        return True
