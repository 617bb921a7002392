"""An augmented interval tree, compiled, over flat words: a peer of ``guestmem.ranges``, for comparison only.

The kernel's interval tree (``include/linux/interval_tree_generic.h``) is a balanced binary tree of ranges by start, in
which each node also holds the last index of its subtree, so that a search skips what ends too early. Here it is an AVL
tree, whose paths are no longer than a red-black tree's, and it does a range map's work: a store cuts, takes away and
joins what it meets, and reuses the first node that it covers. Nodes are a cache line each, and addressed by their
first word; node 0 is none, and its line holds the root and the free nodes.
"""

from __future__ import annotations

from typing import Any, cast

from guestmem.compiled import ONE, U64, ZERO, Own, compiled, const, u64, wrapping
from guestmem.ranges.range_map import _words

_NODE = const(8)
_START, _LAST, _VALUE, _LEFT, _RIGHT, _PARENT, _HEIGHT, _MOST = (const(word) for word in range(8))
_ROOT, _FREE, _NEXT = _START, _LAST, _LEFT  # of node 0, whose value, height and last index of the subtree stay 0
_END = const((1 << 64) - 1)


@compiled
def _refresh(tree: Own, node: U64) -> None:
    """Height and last index of a subtree, from its children's."""
    left = tree[node + _LEFT]
    right = tree[node + _RIGHT]
    tree[node + _HEIGHT] = ONE + max(tree[left + _HEIGHT], tree[right + _HEIGHT])
    tree[node + _MOST] = max(tree[node + _LAST], tree[left + _MOST], tree[right + _MOST])


@compiled
def _hang(tree: Own, parent: U64, old: U64, new: U64) -> None:
    """``new`` where ``old`` was, below ``parent``."""
    if parent == 0:
        tree[_ROOT] = new
    elif tree[parent + _LEFT] == old:
        tree[parent + _LEFT] = new
    else:
        tree[parent + _RIGHT] = new
    if new != 0:
        tree[new + _PARENT] = parent


@compiled
def _rotate(tree: Own, node: U64, side: U64) -> U64:
    """The child on this side rises over ``node``; returned."""
    other = _LEFT + _RIGHT - side
    child = tree[node + side]
    inner = tree[child + other]
    _hang(tree, tree[node + _PARENT], node, child)
    tree[node + side] = inner
    if inner != 0:
        tree[inner + _PARENT] = node
    tree[child + other] = node
    tree[node + _PARENT] = child
    _refresh(tree, node)
    _refresh(tree, child)
    return child


@compiled
def _mend(tree: Own, node: U64) -> None:
    """Balance and what a subtree holds, from ``node`` up, as far as something changes."""
    while node != 0:
        height = tree[node + _HEIGHT]
        most = tree[node + _MOST]
        left = tree[tree[node + _LEFT] + _HEIGHT]
        right = tree[tree[node + _RIGHT] + _HEIGHT]
        if left > right + ONE or right > left + ONE:
            side = _LEFT if left > right else _RIGHT
            other = _LEFT + _RIGHT - side
            child = tree[node + side]
            if tree[tree[child + other] + _HEIGHT] > tree[tree[child + side] + _HEIGHT]:
                _rotate(tree, child, other)
            node = _rotate(tree, node, side)
        else:
            _refresh(tree, node)
        if tree[node + _HEIGHT] == height and tree[node + _MOST] == most:
            break
        node = tree[node + _PARENT]


@compiled
def _insert(tree: Own, first: U64, last: U64, value: U64) -> None:
    node = tree[_FREE]
    if node != 0:
        tree[_FREE] = tree[node + _PARENT]
    else:
        node = tree[_NEXT]
        tree[_NEXT] = node + _NODE
    parent = u64(0)
    side = _LEFT
    at = tree[_ROOT]
    while at != 0:
        parent = at
        side = _LEFT if first < tree[at + _START] else _RIGHT
        at = tree[at + side]
    tree[node + _START] = first
    tree[node + _LAST] = last
    tree[node + _VALUE] = value
    tree[node + _LEFT] = ZERO
    tree[node + _RIGHT] = ZERO
    tree[node + _PARENT] = parent
    tree[node + _HEIGHT] = ZERO
    if parent == 0:
        tree[_ROOT] = node
    else:
        tree[parent + side] = node
    _mend(tree, node)


@compiled
def _erase(tree: Own, node: U64) -> None:
    """Take a range out; of a node with two children, the next range moves into it."""
    if tree[node + _LEFT] != 0 and tree[node + _RIGHT] != 0:
        after = tree[node + _RIGHT]
        while tree[after + _LEFT] != 0:
            after = tree[after + _LEFT]
        tree[node + _START] = tree[after + _START]
        tree[node + _LAST] = tree[after + _LAST]
        tree[node + _VALUE] = tree[after + _VALUE]
        node = after
    parent = tree[node + _PARENT]
    _hang(tree, parent, node, tree[node + _LEFT] | tree[node + _RIGHT])
    tree[node + _PARENT] = tree[_FREE]
    tree[_FREE] = node
    _mend(tree, parent)


@compiled
def interval_first(tree: Own, first: U64, last: U64) -> U64:
    """The first range that meets [first, last], or 0: ``interval_tree_iter_first``."""
    node = tree[_ROOT]
    while node != 0 and tree[node + _MOST] >= first:
        left = tree[node + _LEFT]
        if left != 0 and tree[left + _MOST] >= first:
            node = left
        elif tree[node + _START] > last:
            break
        elif tree[node + _LAST] >= first:
            return node
        else:
            node = tree[node + _RIGHT]
    return u64(0)


@compiled
def interval_load(tree: Own, index: U64) -> U64:
    return tree[interval_first(tree, index, index) + _VALUE]


@compiled
def interval_store(tree: Own, first: U64, last: U64, value: U64) -> None:
    """Overwrite [first, last], 0 for nothing; equal neighbours merge."""
    begin = first
    end = last
    kept = u64(0)  # a node that goes, and is the new range's instead
    at = first - u64(first > 0)
    until = last + u64(last < _END)
    while True:
        node = interval_first(tree, at, until)
        if node == 0:
            break
        start = tree[node + _START]
        stop = tree[node + _LAST]
        old = tree[node + _VALUE]
        if old == value:
            begin = min(begin, start)
            end = max(end, stop)
        if old == value or (start >= first and stop <= last):
            if kept == 0 and value != 0:
                kept = node
            else:
                _erase(tree, node)
        elif start < first:
            if stop >= first:
                tree[node + _LAST] = first - ONE
                _mend(tree, node)
                if stop > last:
                    _insert(tree, last + ONE, stop, old)
        elif start <= last:
            tree[node + _START] = last + ONE
        if stop >= until:
            break
        at = stop + ONE
    if kept != 0:
        tree[kept + _START] = begin
        tree[kept + _LAST] = end
        tree[kept + _VALUE] = value
        _mend(tree, kept)
    elif value != 0:
        _insert(tree, begin, end, value)


@compiled(nogil=True)
def interval_loads(tree: Own, indices: Own, count: U64) -> U64:
    total = u64(0)
    at = u64(0)
    while at < count:
        total = wrapping(total + interval_load(tree, indices[at]))
        at += ONE
    return total


@compiled(nogil=True)
def interval_stores(tree: Own, stores: Own, count: U64) -> None:
    at = u64(0)
    while at < count:
        place = at * u64(3)
        interval_store(tree, stores[place], stores[place + ONE], stores[place + u64(2)])
        at += ONE


class Intervals:
    """The interval tree of at most so many ranges, in the same kind of memory as ours."""

    compiled, name = True, "interval tree, augmented"

    def __init__(self, most: int) -> None:
        memory: Any = _words(int(_NODE) * (most + 3))
        self.tree = cast("Own", getattr(memory, "cells", memory))
        self.tree[int(_NEXT)] = int(_NODE)

    def loads(self, indices: Any, count: int) -> int:
        return int(interval_loads(self.tree, indices, count))

    def stores(self, stores: Any, count: int) -> None:
        interval_stores(self.tree, stores, count)

    def load(self, index: int) -> int:
        return int(interval_load(self.tree, index))

    def store(self, first: int, last: int, value: int) -> None:
        interval_store(self.tree, first, last, value)

    def ranges(self) -> list[tuple[int, int, int]]:
        """(start, end, value) in order; what the tree promises is asserted on the way."""
        found: list[tuple[int, int, int]] = []

        def walk(node: int, parent: int) -> tuple[int, int]:
            if node == 0:
                return 0, 0
            start, last, value, left, right, up, height, most = (int(self.tree[node + word]) for word in range(8))
            assert up == parent, f"node {node}: parent {up}, not {parent}"
            low, low_most = walk(left, node)
            if found:
                assert found[-1][1] < start or (found[-1][1] == start and found[-1][2] != value), (found[-1], start)
            assert start <= last, f"node {node}: [{start}, {last}]"
            found.append((start, last + 1, value))
            high, high_most = walk(right, node)
            assert abs(low - high) <= 1, f"node {node}: not balanced, {low} and {high}"
            assert (height, most) == (1 + max(low, high), max(last, low_most, high_most)), f"node {node}"
            return height, most

        walk(int(self.tree[int(_ROOT)]), 0)
        return found
