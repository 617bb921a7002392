"""A livelock as a schedule: from a state on, all threads go on in turn, and none of them ends."""

from __future__ import annotations

import copy

from .finding import Finding
from .judge import Judge
from .machine import Machine
from .tree import Tree

__all__ = ["in_turn"]


def in_turn(machine: Machine, moves: list[int]) -> Finding | None:
    """The livelock that some moves lead into, in full; None if there is none once all go on in turn.

    Histories are told apart, so that a thread that goes on and on comes to ``Model.steps`` points. ``moves`` grows.
    """
    tree = Tree(machine.tree.world, fences=machine.fences, points=machine.tree.points)
    its = copy.copy(machine)
    its.tree = tree
    judge = Judge(its)
    state = its.start()
    for move in moves:
        state = its.move(state, move)
    last = 0
    while (found := judge.arrived(state)) is None:
        possible = its.moves(state)
        if not possible:
            return None
        move = min(possible, key=lambda move: (move - last - 1) % its.threads)
        last = move % its.threads
        moves.append(move)
        state = its.move(state, move)
    return found.with_moves(moves, minimal=False)
