"""What commutes, and what follows from it: a DPOR search cut into disjoint parts, which need nothing of each other.

Steps are dependent if they touch the same word and one writes it; a wait also reads, and a wake writes, the word's
queue of sleepers.
"""

from __future__ import annotations

from . import operations as op
from .machine import Machine, State

__all__ = ["Part", "dependent", "split"]

Part = tuple[tuple[int, ...], int]
"""A part of a search: the moves it begins with, and the sleep set (as bits) after them."""


def dependent(code: int, at: int, other: int, there: int) -> bool:
    """Whether two threads' next steps do not commute."""
    if code == op.ASLEEP or other == op.ASLEEP:
        return True
    if at != there or op.FENCE in {code, other}:
        return False
    if op.WAKE in {code, other}:
        return code >= op.WAIT and other >= op.WAIT
    reads = {op.LOAD_RELAXED, op.LOAD_ACQUIRE, op.WAIT}
    return code not in reads or other not in reads


def split(machine: Machine, count: int) -> list[Part]:
    """Cut a search into at least ``count`` disjoint parts that together are the whole (fewer if it has fewer runs).

    Every move is tried at the points that are cut open, so no part needs to know what another one found.
    """
    parts: list[tuple[Part, State]] = [(((), 0), machine.start())]
    ended: list[Part] = []
    while parts and len(parts) + len(ended) < count:
        (prefix, sleep), state = parts.pop(0)
        nodes = machine.nodes(state)
        values = machine.memory(state).values
        moves = [k for k, node in enumerate(nodes) if node.code >= 0 and (node.code != op.LOCK or not values[node.at])]
        if not moves or any(node.code == op.FAILED for node in nodes):
            ended.append((prefix, sleep))
            continue
        for move in moves:
            if sleep >> move & 1:
                continue
            code, at = nodes[move].code, nodes[move].at
            still = sum(
                1 << k for k, node in enumerate(nodes) if sleep >> k & 1 and not dependent(node.code, node.at, code, at)
            )
            parts.append((((*prefix, move), still), machine.move(state, move)))
            sleep |= 1 << move
    return ended + [part for part, _ in parts]
