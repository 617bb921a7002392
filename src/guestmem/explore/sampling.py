"""Schedules by chance, for configurations too large to search whole: random walks, and PCT.

PCT gives threads random priorities and lowers them at ``depth - 1`` random points; a bug that needs ``depth`` ordered
steps among ``k`` of ``n`` threads is found by each run with probability at least 1 / (n k^(depth - 1)). Source:
Burckhardt, Kothari, Musuvathi and Nagarakatte, "A randomized scheduler with probabilistic guarantees of finding bugs",
ASPLOS 2010. Run ``i`` of a seed is the same everywhere, whatever ran before it.

``k`` is the length of the longest run, which nobody knows beforehand. The points are drawn from as many as the longest
of some runs has; if one turns out to be longer, no probability is claimed.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable

from . import operations as op
from .judge import Judge
from .machine import Machine, State
from .outcome import Budget, Outcome

__all__ = ["Sampling", "pct_bound"]

_TICK = 16
_TRIED = 16
"""Runs by chance of which the longest says how long runs of PCT are taken to be."""
_NODES = 300_000
"""Histories that are kept; past that, all are forgotten and found again."""


def pct_bound(actors: int, points: int, depth: int) -> float:
    """How likely one PCT run is, at least, to find a bug of a depth.

    >>> pct_bound(2, 10, 3)
    0.005
    """
    return 1 / float(actors * max(points, 1) ** (depth - 1))


class Sampling:
    """Random schedules (``depth`` None) or PCT. Runs ``first``, ``first + stride``, … of ``seed``; ``last`` excluded.

    ``make`` returns a fresh machine with an empty tree. Complete when all runs are done.
    """

    def __init__(
        self,
        make: Callable[[], Machine],
        outcome: Outcome,
        *,
        seed: int,
        last: int | None,
        depth: int | None = None,
        first: int = 0,
        stride: int = 1,
    ) -> None:
        self._make, self.outcome, self.seed, self.last = make, outcome, seed, last
        self.depth, self.next, self.stride = depth, first, stride
        self.ends: set[int] = set()
        self._runs_before = 0
        self._begin()
        self.points = 0
        if depth is not None:  # by the seed, so that it is the same for each part of the runs
            self.points = max(len(self._walk(random.Random(seed + k))[1]) for k in range(_TRIED))  # noqa: S311

    def _begin(self) -> None:
        self.machine = self._make()
        self.judge = Judge(self.machine)
        self.actors = self.machine.threads * (2 if self.machine.name in {"tso", "relaxed"} else 1)

    def run(self, budget: Budget) -> Outcome:
        """Sample. Raises Reshaped when a word turns out to be shared."""
        outcome = self.outcome
        begun = time.monotonic() - outcome.seconds
        while self.last is None or self.next < self.last:
            if outcome.runs % _TICK == 0 and budget.over(outcome, begun):
                break
            rng = random.Random((self.seed << 40) + self.next)  # noqa: S311 - no secret
            self.next += self.stride
            state, moves = self._walk(rng) if self.depth is None else self._ranked(rng)
            outcome.runs += 1
            outcome.points += len(moves)
            outcome.depth = max(outcome.depth, len(moves))
            self.ends.add(hash(self.machine.memory(state).values))
            found = self.judge.arrived(state)
            if found is None and not self.machine.moves(state):
                found = self.judge.ended(state)
            if found is not None and outcome.add(found.with_moves(moves, minimal=False)) and not budget.go_on:
                outcome.stopped = "finding"
                break
            if len(self.machine.tree.nodes) > _NODES:
                self._runs_before += self.machine.tree.runs
                self._begin()
                gc.collect()  # histories know each other: parents and children
        else:
            outcome.complete = True
        outcome.note = self._bound(outcome.depth)
        outcome.distinct = len(self.ends)
        outcome.finals = set(self.ends)
        outcome.code_runs = self._runs_before + self.machine.tree.runs
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _bound(self, longest: int) -> str:
        """What PCT promises, if no run was longer than it was taken for."""
        if self.depth is None:
            return ""
        if longest > self.points:
            return (
                f"PCT: no probability for a bug of depth {self.depth}: a run had {longest} points, "
                f"and changes were drawn from {self.points}"
            )
        return (
            f"PCT: a bug of depth {self.depth} is found by each run with probability at least "
            f"{pct_bound(self.actors, self.points, self.depth):.2g} ({self.actors} actors, {self.points} points)"
        )

    def _over(self, state: State) -> bool:
        """Whether a run is over before its end: a thread failed, an invariant is broken."""
        if self.judge.invariants:
            return self.judge.arrived(state) is not None
        return any(node.code == op.FAILED for node in self.machine.nodes(state))

    def _walk(self, rng: random.Random) -> tuple[State, list[int]]:
        machine = self.machine
        state = machine.start()
        moves: list[int] = []
        while True:
            possible = machine.moves(state) + machine.whims(state)
            if not possible or self._over(state):
                return state, moves
            move = possible[int(rng.random() * len(possible))]
            moves.append(move)
            state = machine.move(state, move)

    def _ranked(self, rng: random.Random) -> tuple[State, list[int]]:
        machine, n, depth = self.machine, self.machine.threads, self.depth or 1
        ranks = list(range(depth, depth + self.actors))
        rng.shuffle(ranks)
        changes = {rng.randrange(max(self.points, 1)): rank for rank in range(depth - 1, 0, -1)}
        state = machine.start()
        moves: list[int] = []
        buffers = self.actors > n
        while True:
            possible = machine.moves(state) + machine.whims(state)
            if not possible or self._over(state):
                return state, moves
            ranked = [(ranks[move % n + n * (buffers and move >= n)], move) for move in possible]
            rank = max(ranked)[0]
            best = [move for its, move in ranked if its == rank]
            move = best[0] if len(best) == 1 else best[int(rng.random() * len(best))]
            if len(moves) in changes:
                ranks[move % n + n * (buffers and move >= n)] = changes[len(moves)]
            moves.append(move)
            state = machine.move(state, move)
