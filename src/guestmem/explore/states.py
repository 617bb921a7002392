"""The search over states: every state that can be reached, each once, breadth first, with invariants checked in each.

States are rows of numbers, expanded by a compiled loop (``expand.py``); Python is asked only for what a move makes of
its parts, once for each (``rows.py``). Breadth first, so the frontier is the tail of one array, and a checkpoint only
writes what was added to it. A state keeps its parent; which move led to it is found again when somebody asks.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np

from . import asking as ask
from . import packed
from .expand import expand
from .finding import Finding
from .growing import Growing
from .judge import Judge
from .livelock import in_turn
from .machine import Machine, State
from .outcome import Budget, Outcome
from .rows import Rows
from .unfolding import Unfolding

__all__ = ["States"]

_CHUNK, _LARGEST = 1 << 10, 1 << 18
"""States that are expanded before a look at the budget: as many at first, and at most."""
_LOOK_S = 0.5
_ASKED = 1 << 15
_TRIED = 16
"""States without an end in reach that are looked at for a livelock."""
_TABLE_FULL = 0.7
_ROWS_FULL = 0.6


class States:
    """One search over the states of a machine. ``run`` until complete, out of budget, or (unless it goes on) a finding.

    With ``bound``, only schedules with at most so many preemptions: a state also says who ran last and how many
    preemptions it took, and is searched again if it took fewer.
    """

    def __init__(self, machine: Machine, outcome: Outcome, *, bound: int | None = None) -> None:
        self.machine, self.outcome, self.bound = machine, outcome, bound
        self.judge = Judge(machine)
        self.rows = Rows(machine, self.judge)
        self._unfolding = Unfolding(self.rows)
        bounded = bound is not None
        n = machine.threads
        self.width = 1 + n + 2 * bounded
        self.count = self.done = 0
        self.level_end = 1
        self._levels = [1]
        self._again: list[Any] = []
        # How many states one state may lead to, and how many questions it may raise for each.
        moves = n * (2 + machine.tree.world.model.buffer if self.rows.buffers else 66)
        self._most = moves if self.rows.buffers or self.rows.stale else n + 1
        rows, size = self.rows, self._unfolding.size
        self._options = np.array(
            [n, self.width, bounded, rows.stale, rows.watched, bound or 0, rows.buffers, self._most, 0, size, 0],
            np.uint64,
        )
        self._states, self._parents = Growing(self.width << 12), Growing(1 << 12)
        self._table = Growing(1 << 13)
        self._keys, self._values = Growing(1 << 13, 64), Growing(1 << 13)
        self._pair_keys, self._pair_values = Growing(1 << 13, 64), Growing(1 << 13)
        self._moves = [Growing(1 << 12) for _ in range(3)]
        self._kinds, self._points, self._looks, self._views = (Growing(1 << 10) for _ in range(4))
        self._awake, self._rise, self._alone = (Growing(1 << 10) for _ in range(3))
        self._known = 0
        room = max(_ASKED, 32 * self._most)
        self._asked = np.zeros(2 * room, np.uint64)
        self._off = np.zeros(room, np.uint32)
        self._found_rows = np.zeros((self.width + 1) * (64 + 2 * self._most), np.uint32)
        self._ended_rows = np.zeros(room, np.uint32)
        self._row, self._slots = np.zeros(self.width, np.uint32), np.zeros(n, np.uint64)
        self._can_end = np.zeros(1, np.uint32)
        self._counts = np.zeros(ask.COUNTS, np.uint64)
        self._counts[ask.MOVES] = 1  # 0: there is none
        first = [*self.rows.encode(machine.start()), *[0] * (2 * bounded)]
        self._learn()
        self._begin(first)
        self.count = int(self._counts[0])

    def _begin(self, first: list[int]) -> None:
        """Add the first state."""
        arrays = self._states.data, self._parents.data, self._table.data, np.array(first, np.uint32)
        self._counts[0] = packed.add_first(*arrays, self.width, int(self.bound is not None))

    # What others ask of a search.

    @property
    def size(self) -> int:
        """Bytes that states take, with their parents and their places in the hash table."""
        return 4 * (self.count * (self.width + 1) + len(self._table))

    def state(self, index: int) -> State:
        """A state, as the machine knows it."""
        return self.rows.decode(self._states.data[index * self.width : (index + 1) * self.width])

    def path(self, index: int) -> list[int]:
        """The moves that lead to a state."""
        chain = [index]
        while index:
            index = int(self._parents.data[index])
            chain.append(index)
        states = [self.state(each) for each in reversed(chain)]
        return [self._move(before, after) for before, after in pairwise(states)]

    def run(self, budget: Budget) -> Outcome:
        """Search. Raises Reshaped when a word turns out to be shared."""
        begun = time.monotonic() - self.outcome.seconds
        outcome = self.outcome
        if self.done == 0:
            found = self.judge.arrived(self.state(0))
            if found is not None and self._keep(found.with_moves((), minimal=False), budget):
                return self._ended(begun)
        looked = 0.0
        while self.done < self.count or self._again:
            if not self._again or time.monotonic() - looked > _LOOK_S:  # rather when no state is put off
                self._count()
                if budget.over(outcome, begun):
                    return self._ended(begun)
                looked = time.monotonic()
            if not self._again and self.done == self.level_end:
                self._level()
            if self._expand(budget) or self._is_full():
                return self._ended(begun)
        if outcome.cut:
            outcome.stopped = f"a loop of more than {self.machine.tree.world.model.steps} points"
            return self._ended(begun)
        self._is_over(budget)
        return self._ended(begun)

    def _level(self) -> None:
        """Begin the next level."""
        self.outcome.depth += 1
        self._levels.append(self.count - self.level_end)
        self.level_end = self.count

    def _is_full(self) -> bool:
        """Whether there is no more room for states."""
        return False

    def _is_over(self, budget: Budget) -> None:
        """All states are known."""
        self.outcome.complete = True
        if self.machine.tree.keys is not None and not self.outcome.findings:
            self._livelocks(budget)

    def _found_so_far(self) -> int:
        """How many states there are."""
        return self.count

    def _livelocks(self, budget: Budget) -> None:
        """Whether there is a state from which no end can be reached: only if threads can come back to where they were.

        A finding is told by a schedule in which all threads go on in turn, until one is past ``Model.steps`` points.
        """
        outcome, tree = self.outcome, self.machine.tree
        outcome.loops = tree.cyclic()
        if not outcome.loops:
            return
        self._can_end = np.zeros(self.count, np.uint32)
        self._options[8] = 1
        changed = 1
        while changed:
            self._counts[9] = 0
            last = self.count
            while last:
                first = max(0, last - _LARGEST)
                self._call(self._off[:0], first, last)
                last = first
            changed = int(self._counts[9])
        self._options[8] = 0
        stuck = np.flatnonzero(self._can_end == 0)
        for index in stuck[:_TRIED].tolist():  # with a bound, an end may be beyond it
            found = in_turn(self.machine, self.path(index))
            if found is not None:
                self._keep(found, budget)
                break

    # For checkpoints. States that were put off are done again.

    def saved(self, first: int) -> tuple[bytes, bytes]:
        """The states from number ``first`` on, and their parents."""
        width, last = self.width, self.count
        return self._states.data[first * width : last * width].tobytes(), self._parents.data[first:last].tobytes()

    def frontier(self) -> tuple[int, int, list[int], list[list[int]], int]:
        """Where the search is: what is expanded, the level's end, sizes of levels, what was put off, moves so far."""
        return self.done, self.level_end, self._levels, [each.tolist() for each in self._again], int(self._counts[3])

    def clear(self) -> None:
        """Forget the states, before those of another process are loaded."""
        self.count = 0

    def load(self, states: bytes, parents: bytes) -> None:
        """Append states that were saved."""
        self._states.put(self.count * self.width, np.frombuffer(states, np.uint32))
        self._parents.put(self.count, np.frombuffer(parents, np.uint32))
        self.count += len(parents) // 4

    def resume(self, frontier: tuple[int, int, list[int], list[list[int]], int]) -> None:
        """Go on with the states that were loaded."""
        self.done, self.level_end, self._levels, again, points = frontier
        self._again = [np.array(each, np.uint32) for each in again]
        self._counts[0], self._counts[3] = self.count, points
        size = len(self._table)
        while self.count + self._most > _TABLE_FULL * size:
            size *= 2
        self._rehash(size)
        self._learn()

    def _move(self, before: State, after: State) -> int:
        """The move that leads from one state to another."""
        machine = self.machine
        for move in [*machine.moves(before), *machine.whims(before)]:
            if machine.move(before, move) == after:
                return move
        raise AssertionError("no move leads from a state to its successor")

    def _keep(self, finding: Finding, budget: Budget) -> bool:
        """Keep a finding; whether to stop."""
        if self.outcome.add(finding) and not budget.go_on:
            self.outcome.stopped = "finding"
            return True
        return False

    def _count(self) -> None:
        outcome = self.outcome
        outcome.distinct = self._found_so_far()
        outcome.points = int(self._counts[3])
        outcome.code_runs = self.machine.tree.runs
        outcome.bytes = self.size
        outcome.left = self._left()

    def _left(self) -> int | None:
        """How many states are still to come, guessed from how levels shrink; None while they grow."""
        levels = self._levels[-9:]
        if len(levels) < 9 or sum(levels[5:]) >= 0.95 * sum(levels[1:5]):
            return None
        ratio = (sum(levels[5:]) / sum(levels[1:5])) ** 0.25
        return int(levels[-1] * ratio / (1 - ratio))

    def _ended(self, begun: float) -> Outcome:
        self._count()
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    # One round: expand some states, then answer what was asked.

    def _upto(self) -> int:
        """Up to which state the next round goes."""
        return min(self.level_end, self.done + max(_CHUNK, min(self.done >> 2, _LARGEST)))

    def _expand(self, budget: Budget) -> bool:
        """Expand the states that were put off, or some new ones; whether to stop."""
        self._make_room()
        if self._again:
            work = self._again.pop()
            lo, hi = 0, len(work)
        else:
            work = self._off[:0]
            lo, hi = self.done, self._upto()
        counts = self._counts
        counts[1:3] = counts[4:6] = 0
        self._call(work, lo, hi)
        _, asked, off, _, found, ended, _, _, stop = counts.tolist()[:9]
        self.count = int(counts[0])
        if len(work):
            if stop < hi:
                self._again.append(work[stop:])
        else:
            self.done = stop
        if off:
            self._again.append(self._off[:off].copy())
        if asked:
            self._answer(self._asked[: 2 * asked])
        for row in self._found_rows[: found * (self.width + 1)].reshape(-1, self.width + 1).tolist():
            if self._arrived(row, budget):
                return True
        return any(self._end(index, budget) for index in self._ended_rows[:ended].tolist())

    def _call(self, work: Any, lo: int, hi: int) -> None:
        after, own, info = self._moves
        self._counts[ask.MEMORIES] = self._unfolding.learn()
        expand(
            self._states.data, self._parents.data, self._table.data, work, self._keys.data, self._values.data,
            after.data, own.data, info.data, self._kinds.data, self._points.data, self._awake.data,
            self._rise.data, self._alone.data, self._looks.data, self._views.data, self._pair_keys.data,
            self._pair_values.data, self._asked, self._off, self._found_rows, self._ended_rows, self._row,
            self._can_end, self._slots, self._counts, self._options, self._unfolding.arrays(), lo, hi,
        )  # fmt: skip
        self._unfolding.tell(int(self._counts[ask.MEMORIES]))

    def _make_room(self) -> None:
        most = self._most
        self._room_for_states(most)
        if self._counts[ask.MOVES] + most > len(self._moves[0]):
            for column in self._moves:
                column.grow(2 * len(column))
        self._unfolding.make_room(most)
        if self._counts[6] + len(self._slots) > _ROWS_FULL * len(self._keys):
            self._keys, self._values = self._larger(self._keys, self._values)
        if self._counts[7] + 8 * most > _ROWS_FULL * len(self._pair_keys):
            self._pair_keys, self._pair_values = self._larger(self._pair_keys, self._pair_values)

    def _room_for_states(self, most: int) -> None:
        while (self.count + most) * self.width > len(self._states):
            self._states.grow(2 * len(self._states))
        while self.count + most > len(self._parents):
            self._parents.grow(2 * len(self._parents))
        while self.count + most > _TABLE_FULL * len(self._table):
            self._rehash(2 * len(self._table))

    def _rehash(self, size: int) -> None:
        self._table = Growing(size)
        packed.move_states(self._states.data, self._table.data, self.width, int(self.bound is not None), self.count)

    @staticmethod
    def _larger(keys: Growing, values: Growing) -> tuple[Growing, Growing]:
        new = Growing(4 * len(keys), 64), Growing(4 * len(keys))
        packed.move_rows(keys.data, values.data, new[0].data, new[1].data)
        return new

    def _answer(self, asked: Any) -> None:
        """Have Python say what each move makes of its parts, and write it where it belongs."""
        rows = self.rows
        answers: dict[int, list[int]] = {}
        moves: list[tuple[int, int, int]] = []
        for question, slot in asked.reshape(-1, 2).tolist():
            kind, a, b = question >> 60, question >> 32 & 0xFFFFFFF, question & 0xFFFFFFFF
            if kind:
                into = kind if kind >= ask.ALONE or (kind == ask.WAKE and not rows.stale) else 1
                answers.setdefault(into, []).extend((slot if into == 1 else a, rows.answer(kind, a, b)))
                continue
            first = 0
            found = rows.moves(a, b)
            if found:
                first = int(self._counts[ask.MOVES]) + len(moves)
                moves += [(shared, own, wakes << 1) for shared, own, wakes in found]
                shared, own, info = moves[-1]
                moves[-1] = shared, own, info | 1
            answers.setdefault(0, []).extend((slot, first))
        if moves:
            for column, values in zip(self._moves, zip(*moves, strict=True), strict=True):
                column.put(int(self._counts[ask.MOVES]), values)
            self._counts[ask.MOVES] += len(moves)
        self._learn()
        places = {0: self._values, 1: self._pair_values, int(ask.WAKE): self._awake}
        places |= {int(ask.ALONE): self._alone, int(ask.RISE): self._rise, int(ask.ACTIONS): self._unfolding.first}
        for into, pairs in answers.items():
            packed.fill(places[into].data, np.array(pairs, np.uint64))

    def _learn(self) -> None:
        """Hand what is new about threads' own parts to the compiled loop."""
        rows, known = self.rows, self._known
        if len(rows.locals) == known:
            return
        self._kinds.put(known, rows.kinds[known:])
        self._points.put(known, rows.points_of[known:])
        self._looks.put(known, rows.looks[known:])
        self._views.put(known, rows.views[known:])
        for column in (self._awake, self._rise, self._alone, self._unfolding.first):
            column.grow(len(self._kinds))
        self._known = len(rows.locals)

    def _arrived(self, found: list[int], budget: Budget) -> bool:
        """A state in which something is wrong was reached: ``found`` is its parent, and itself."""
        reached = self.rows.decode(found[1:])
        finding = self.judge.arrived(reached)
        assert finding is not None
        parent = found[0]
        if finding.kind == "livelock" and self.outcome.cut:
            return False
        moves = [*self.path(parent), self._move(self.state(parent), reached)]
        if finding.kind == "livelock" and self.machine.tree.keys is not None:
            n, last = self.machine.threads, moves[-1]
            fair = list(moves)
            while fair and fair[-1] % n == last % n:
                fair.pop()
            if in_turn(self.machine, fair) is None:  # only a schedule that keeps the others from going on
                self.outcome.cut = True
                return False
        return self._keep(finding.with_moves(moves, minimal=False), budget)

    def _end(self, index: int, budget: Budget) -> bool:
        """Nothing more can happen in a state: the end, or a deadlock."""
        state = self.state(index)
        found = self.judge.ended(state)
        if found is not None and self._keep(found.with_moves(self.path(index), minimal=False), budget):
            return True
        self.outcome.finals.add(self.judge.end(state))
        return False
