"""Shrinking: a schedule that shows the same finding with the fewest switches between threads.

First by a search over states in the order of switches, whose first find is minimal; if that takes too long, by leaving
parts of the schedule out for as long as the finding stays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count, pairwise

from . import operations as op
from .finding import Finding
from .judge import Judge
from .machine import Machine, State

__all__ = ["count_switches", "shrink"]

_STATES = 300_000


def count_switches(machine: Machine, moves: Sequence[int]) -> int:
    """How often a schedule goes from one thread (or its store buffer) to another.

    ``[0, 0, 1, 0]`` of two threads: 2.
    """
    actors = [move % machine.threads for move in moves]
    return sum(a != b for a, b in pairwise(actors))


def shrink(machine: Machine, finding: Finding, *, seconds: float = 20.0) -> Finding:
    """The same finding by a schedule with the fewest switches; ``minimal`` says whether that is known."""
    end = time.monotonic() + seconds
    judge = Judge(machine)
    moves = _fewest(machine, judge, finding, time.monotonic() + seconds * 0.6)
    if moves is not None:
        return finding.with_moves(moves, minimal=True)
    return finding.with_moves(_shorter(machine, judge, finding, end), minimal=False)


def _shows(judge: Judge, state: State, finding: Finding) -> bool:
    found = judge.arrived(state)
    if found is None and not judge.machine.moves(state):
        found = judge.ended(state)
    return found is not None and found.key == finding.key


def _all_moves(machine: Machine, state: State) -> list[int]:
    moves = machine.moves(state)
    return moves + [whim for whim in machine.whims(state) if whim not in moves]


def _fewest(machine: Machine, judge: Judge, finding: Finding, end: float) -> list[int] | None:
    """In the order of (switches, steps): the first visit of a state, and of who ran last, has the fewest."""
    first = (machine.start(), -1)
    work: list[tuple[int, int, int, tuple[State, int]]] = [(0, 0, 0, first)]
    best: dict[tuple[State, int], tuple[int, int, tuple[State, int] | None, int]] = {first: (0, 0, None, 0)}
    done: set[tuple[State, int]] = set()
    tie = count()
    while work:
        switches, steps, _, here = heappop(work)
        if here in done:
            continue
        done.add(here)
        if len(done) % 256 == 0 and (time.monotonic() > end or len(best) > _STATES):
            return None
        state, last = here
        if _shows(judge, state, finding):
            moves = []
            while (step := best[here])[2] is not None:
                moves.append(step[3])
                here = step[2]
            return moves[::-1]
        if any(node.code == op.FAILED for node in machine.nodes(state)):
            continue
        for move in _all_moves(machine, state):
            actor = move % machine.threads
            there = (machine.move(state, move), actor)
            cost = (switches + (last >= 0 and actor != last), steps + 1)
            known = best.get(there)
            if known is None or cost < known[:2]:
                best[there] = (*cost, here, move)
                heappush(work, (*cost, next(tie), there))
    return None


def _blocks(machine: Machine, moves: Sequence[int]) -> list[list[int]]:
    """A schedule as what each thread did in a row."""
    blocks: list[list[int]] = []
    for move in moves:
        if blocks and blocks[-1][-1] % machine.threads == move % machine.threads:
            blocks[-1].append(move)
        else:
            blocks.append([move])
    return blocks


def _replayed(machine: Machine, judge: Judge, finding: Finding, wanted: Sequence[int]) -> list[int] | None:
    """Follow a schedule as far as it goes, then let threads finish one after the other; None if nothing is shown."""
    state = machine.start()
    moves: list[int] = []
    queue = deque(wanted)
    last = 0
    while not _shows(judge, state, finding):
        possible = _all_moves(machine, state)
        while queue and queue[0] not in possible:
            queue.popleft()
        if not possible or any(node.code == op.FAILED for node in machine.nodes(state)):
            return None
        same = [move for move in possible if move % machine.threads == last]
        move = queue.popleft() if queue else (same or possible)[0]
        last = move % machine.threads
        moves.append(move)
        state = machine.move(state, move)
    return moves


def _shorter(machine: Machine, judge: Judge, finding: Finding, end: float) -> list[int]:
    """Leave blocks out, or join them to the next of the same thread, as long as that helps."""
    best = list(finding.moves)
    measure = (count_switches(machine, best), len(best))
    better = True
    while better and time.monotonic() < end:
        better = False
        blocks = _blocks(machine, best)
        trials = [blocks[:i] + blocks[i + 1 :] for i in range(len(blocks))]
        trials += [
            [*blocks[:i], blocks[i] + blocks[i + 2], blocks[i + 1], *blocks[i + 3 :]] for i in range(len(blocks) - 2)
        ]
        for trial in trials:
            moves = _replayed(machine, judge, finding, [move for block in trial for move in block])
            if moves is not None and (size := (count_switches(machine, moves), len(moves))) < measure:
                best, measure, better = moves, size, True
                break
            if time.monotonic() > end:
                break
    return best
