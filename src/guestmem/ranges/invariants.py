"""``check()`` of a range map: every invariant of its tree, its lists and its counts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ..atomics import peek
from ..compiled import Own, Words
from ..errors import InvariantError
from ..units import U64_MAX
from . import layout as at

__all__: list[str] = []


def check_ranges(words: Words, desk: Own, fanout: int) -> None:
    """Raise InvariantError unless the map is sound. O(n), by the writer or under its lock."""
    root = peek(words, int(at.ROOT))
    height, size, minimum = root & int(at.HEIGHT_MASK), at.node_words(fanout), fanout // 2
    nodes: set[int] = set()
    level = [(root >> at.HEIGHT_BITS, 0)]
    if height and peek(words, level[0][0] + size - 2) < 2:
        raise InvariantError("ranges: the root has one child, and should be that child")
    for depth in range(height, -1, -1):
        entries: list[tuple[int, int]] = []
        for place, (node, first) in enumerate(level):
            if node in nodes:
                raise InvariantError(f"ranges: node {node:#x} is in the tree twice")
            nodes.add(node)
            count = peek(words, node + size - 2)
            where = f"node {node:#x} of level {depth}"
            least = minimum if place + 1 < len(level) else 1
            if not least <= count <= fanout:
                raise InvariantError(
                    f"ranges: node {node:#x} of level {depth} has {count} entries, not {least} to {fanout}"
                )
            if peek(words, node) != first:
                raise InvariantError(
                    f"ranges: {where} starts at {peek(words, node):#x}, the level above says {first:#x}"
                )
            if any(peek(words, node + i) != U64_MAX for i in range(count, size // 2)):
                raise InvariantError(f"ranges: {where} has a key past its {count} entries")
            entries += [(peek(words, node + i), peek(words, node + size // 2 + i)) for i in range(count)]
        for (one, value), (two, after) in pairwise(entries):
            if one >= two:
                raise InvariantError(f"ranges: key {two:#x} of level {depth} follows {one:#x}")
            if depth == 0 and value == after:
                raise InvariantError(f"ranges: value {value:#x} stands on both sides of {two:#x}")
        level = [(child, key) for key, child in entries]
    with_value = sum(1 for value, _ in level if value)
    if with_value != int(desk[int(at.COUNT)]):
        raise InvariantError(f"ranges: {with_value} ranges have a value, {int(desk[int(at.COUNT)])} were counted")
    _check_lists(words, desk, nodes, size)


def _check_lists(words: Words, desk: Own, nodes: set[int], size: int) -> None:
    def number(name: Any) -> int:
        return int(desk[int(name)])

    def linked(node: int, what: str) -> int:
        count = 0
        while node:
            if node in nodes:
                raise InvariantError(f"ranges: {what} node {node:#x} is also elsewhere")
            nodes.add(node)
            count, node = count + 1, int(peek(words, node + size - 1))
        return count

    if len(nodes) != number(at.USED):
        raise InvariantError(f"ranges: {len(nodes)} nodes are in the tree, {number(at.USED)} were counted")
    if (free := linked(number(at.FREE), "free")) != number(at.FREE_COUNT):
        raise InvariantError(f"ranges: {free} nodes are free, {number(at.FREE_COUNT)} were counted")
    waiting = linked(number(at.CHAIN), "unlinked")
    queue = number(at.QUEUE)
    for put in range(int(peek(words, queue)), int(peek(words, queue + 1))):
        waiting += linked(int(peek(words, queue + 9 + 2 * (put & (at.QUEUE_CAPACITY - 1)))), "waiting")
    if waiting != number(at.WAITING):
        raise InvariantError(f"ranges: {waiting} nodes wait for readers, {number(at.WAITING)} were counted")
    base = at.nodes_base(number(at.READERS))
    if base + len(nodes) * size != number(at.NEXT):
        taken = (number(at.NEXT) - base) // size
        raise InvariantError(f"ranges: {taken} nodes were taken, {len(nodes)} are somewhere")
