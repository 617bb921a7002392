"""The search over states in plain Python: what tests compare the compiled one (``states.py``) with.

Every state that can be reached, each once, breadth first, with invariants checked in each.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from . import operations as op
from .finding import Finding
from .judge import Judge
from .machine import Machine, State
from .outcome import Budget, Outcome

__all__ = ["PlainStates"]

_TICK = 1024


class PlainStates:
    """One search over the states of a machine. ``run`` until complete, out of budget, or (unless it goes on) a finding.

    With ``bound``, only schedules with at most so many preemptions: a state also says who ran last and how many
    preemptions it took, and is searched again if it took fewer.
    """

    def __init__(self, machine: Machine, outcome: Outcome, *, bound: int | None = None) -> None:
        self.machine, self.outcome, self.bound = machine, outcome, bound
        self.judge = Judge(machine)
        self.order: list[State] = []
        self.parents = array("q")
        self.moves = array("q")
        self.done = 0
        self.level_end = 1
        self._seen: set[State] = set()
        self._add(machine.start(), -1, 0)

    def run(self, budget: Budget) -> Outcome:
        """Search. Raises Reshaped when a word turns out to be shared."""
        begun = time.monotonic() - self.outcome.seconds
        expand = self._pick()
        outcome = self.outcome
        if self.done == 0:
            found = self.judge.arrived(self.order[0])
            if found is not None and self._found(found, 0, budget):
                return self._ended(begun)
        while self.done < len(self.order):
            if self.done % _TICK == 0:
                self._count()
                if budget.over(outcome, begun):
                    return self._ended(begun)
            if self.done == self.level_end:
                outcome.depth += 1
                self.level_end = len(self.order)
            index = self.done
            self.done += 1
            if expand(self.order[index], index, budget):
                return self._ended(begun)
        outcome.complete = True
        return self._ended(begun)

    def path(self, index: int) -> list[int]:
        """The moves that lead to a state."""
        moves = []
        while self.parents[index] >= 0:
            moves.append(self.moves[index])
            index = self.parents[index]
        return moves[::-1]

    def _pick(self) -> Callable[[State, int, Budget], bool]:
        if self.bound is not None:
            return self._expand_bounded
        return (
            self._expand_sc
            if type(self.machine) is Machine and not self.judge.tree.world.model.spurious
            else self._expand
        )

    def _add(self, state: State, parent: int, move: int) -> None:
        self._seen.add(state)
        self.order.append(state)
        self.parents.append(parent)
        self.moves.append(move)

    def _count(self) -> None:
        self.outcome.distinct = len(self.order)
        self.outcome.code_runs = self.machine.tree.runs

    def _ended(self, begun: float) -> Outcome:
        self._count()
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _found(self, finding: Finding, index: int, budget: Budget, move: int | None = None) -> bool:
        """Keep a finding; whether to stop."""
        moves = self.path(index) + ([] if move is None else [move])
        if self.outcome.add(finding.with_moves(moves, minimal=False)) and not budget.go_on:
            self.outcome.stopped = "finding"
            return True
        return False

    def _expand_sc(self, state: State, index: int, budget: Budget) -> bool:
        """One state under the plain machine: the hot loop. ``Machine.moves`` and ``move``, written out."""
        memory = state[0]
        seen, tree, outcome = self._seen, self.machine.tree, self.outcome
        invariants = self.judge.invariants
        stuck = True
        for at in range(1, len(state)):
            node = state[at]
            if node.code < 0:
                continue
            after, kid, wakes = node.memo.get(memory) or tree.look(node, memory)
            if kid is None:
                continue
            stuck = False
            outcome.points += 1
            if wakes < 0:
                reached = (after, *state[1:at], kid, *state[at + 1 :])
                failed = kid.code == op.FAILED
            else:
                nodes = list(state[1:])
                nodes[at - 1] = kid
                tree.wake(nodes, node)
                reached = (after, *nodes)
                failed = True  # maybe: somebody woke
            if reached in seen:
                continue
            if failed or invariants:
                found = self.judge.arrived(reached)
                if found is not None:
                    if self._found(found, index, budget, at - 1):
                        return True
                    continue
            seen.add(reached)
            self.order.append(reached)
            self.parents.append(index)
            self.moves.append(at - 1)
        if stuck:
            if self.machine.moves(state):
                return self._expand(state, index, budget)  # timeouts
            return self._stuck(state, index, budget)
        return False

    def _expand(self, state: State, index: int, budget: Budget) -> bool:
        machine = self.machine
        alone = machine.unseen(state, watched=bool(self.judge.invariants))
        if alone >= 0:
            moves = [alone]
        else:
            moves = machine.moves(state)
            if not moves and self._stuck(state, index, budget):
                return True
            moves += [whim for whim in machine.whims(state) if whim not in moves]
        for move in moves:
            self.outcome.points += 1
            reached = machine.move(state, move)
            if reached in self._seen:
                continue
            found = self.judge.arrived(reached)
            if found is None:
                self._add(reached, index, move)
            elif self._found(found, index, budget, move):
                return True
        return False

    def _stuck(self, state: State, index: int, budget: Budget) -> bool:
        """Nothing more can happen: the end, or a deadlock."""
        found = self.judge.ended(state)
        if found is not None and self._found(found, index, budget):
            return True
        self.outcome.finals.add(self.judge.end(state))
        return False

    # With a bound on preemptions. States here are (state, actor who ran last, preemptions used).

    def _expand_bounded(self, state: State, index: int, budget: Budget) -> bool:
        machine, bound = self.machine, self.bound or 0
        if index == 0:
            self._best: dict[tuple[State, int], int] = {}
            inner, last, used = state, -1, 0
        else:
            inner, last, used = state
        moves = machine.moves(inner)
        if not moves and self._stuck(inner, index, budget):
            return True
        can_go_on = any(move % machine.threads == last for move in moves)
        for move in [*moves, *(whim for whim in machine.whims(inner) if whim not in moves)]:
            actor = move % machine.threads
            cost = used + (can_go_on and actor != last)
            if cost > bound:
                continue
            self.outcome.points += 1
            reached = machine.move(inner, move)
            if self._best.get((reached, actor), bound + 1) <= cost:
                continue
            self._best[reached, actor] = cost
            found = self.judge.arrived(reached)
            if found is None:
                self._add((reached, actor, cost), index, move)
            elif self._found(found, index, budget, move):
                return True
        return False
