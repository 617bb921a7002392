"""A B+tree over flat words: the order of a set's slots, by gfn and (with the largest end below) by hva.

Each node is a count and columns of ``fanout`` words: key, value, largest end in the subtree; in trees by hva also the
slot id that orders equal keys (slots may alias host memory). An inner node's entry is the exact summary of
its child: its smallest key, and the largest end. Only the updater edits, and only the set that no reader is in, so
all accesses are relaxed. Splits fill the left node when slots come in ascending order; a node other than the last of
its level is at least half full. Idea: an interval tree (Linux ``lib/interval_tree.c``) on a B+tree's memory.
"""

from __future__ import annotations

from typing import NamedTuple

from ..atomics import load_relaxed, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, u64
from .layout import (
    COLUMNS,
    FANOUT,
    HEIGHT,
    NODE_FREE,
    NODE_NEXT,
    NODE_WORDS,
    NODES_USED,
    PATH,
    ROOT,
)

__all__ = ["last_at_most", "tree_insert", "tree_remove", "tree_replace"]


@compiled
def last_at_most(memslots: Words, keys: U64, count: U64, key: U64) -> U64:
    """Index of the last of ``count`` ascending keys that is at most ``key``; 0 if there is none. O(log count)."""
    low = u64(0)
    while count > 1:
        half = count >> 1
        if load_relaxed(memslots, keys + low + half) <= key:
            low += half
        count -= half
    return low


@compiled
def _last_tied(memslots: Words, node: U64, fanout: U64, key: U64, tie: U64) -> U64:
    """As ``last_at_most``, for keys that ties order further. O(log fan-out)."""
    keys = node + ONE
    ties = keys + fanout * u64(3)
    low = u64(0)
    count = load_relaxed(memslots, node)
    while count > 1:
        half = count >> 1
        seen = load_relaxed(memslots, keys + low + half)
        if seen < key or (seen == key and load_relaxed(memslots, ties + low + half) <= tie):
            low += half
        count -= half
    return low


@compiled
def _descend(memslots: Words, desk: Own, tree: U64, key: U64, tie: U64) -> U64:
    """Write the path to where (key, tie) belongs: node and index per level, leaf first.

    Returns the lowest level whose node on the path is the last of its level. O(log n).
    """
    fanout = load_relaxed(memslots, tree + FANOUT)
    level = load_relaxed(memslots, tree + HEIGHT)
    node = load_relaxed(memslots, tree + ROOT)
    columns = load_relaxed(memslots, tree + COLUMNS)
    last = level
    while True:
        count = load_relaxed(memslots, node)
        if columns == 3:
            index = last_at_most(memslots, node + ONE, count, key)
        else:
            index = _last_tied(memslots, node, fanout, key, tie)
        desk[PATH + level + level] = node
        desk[PATH + level + level + ONE] = index
        if level == 0:
            return last
        if last == level and index + ONE == count:
            last = level - ONE
        node = load_relaxed(memslots, node + ONE + fanout + index)
        level -= ONE


class Entry(NamedTuple):
    """One entry of a node; ``tie``: only where a node has four columns."""

    key: U64
    value: U64
    end: U64
    tie: U64


@compiled
def _write(memslots: Words, node: U64, fanout: U64, columns: U64, index: U64, entry: Entry) -> None:
    """Write one entry of a node."""
    key, value, end, tie = entry
    at = node + ONE + index
    store_relaxed(memslots, at, key)
    store_relaxed(memslots, at + fanout, value)
    store_relaxed(memslots, at + fanout + fanout, end)
    if columns == 4:
        store_relaxed(memslots, at + fanout * u64(3), tie)


@compiled
def _move(
    memslots: Words, fanout: U64, columns: U64, source: U64, first: U64, target: U64, to: U64, count: U64
) -> None:
    """Copy ``count`` entries from index ``first`` of ``source`` to index ``to`` of ``target``, maybe the same node."""
    column = u64(0)
    while column < columns:
        start = source + ONE + column * fanout + first
        stop = target + ONE + column * fanout + to
        if first < to:
            left = count
            while left > 0:
                left -= ONE
                store_relaxed(memslots, stop + left, load_relaxed(memslots, start + left))
        else:
            done = u64(0)
            while done < count:
                store_relaxed(memslots, stop + done, load_relaxed(memslots, start + done))
                done += ONE
        column += ONE


@compiled
def _open_gap(memslots: Words, node: U64, fanout: U64, columns: U64, index: U64) -> None:
    """Make room for one entry at ``index``."""
    count = load_relaxed(memslots, node)
    _move(memslots, fanout, columns, node, index, node, index + ONE, count - index)
    store_relaxed(memslots, node, count + ONE)


@compiled
def _close_gap(memslots: Words, node: U64, fanout: U64, columns: U64, index: U64) -> None:
    """Drop the entry at ``index``."""
    count = load_relaxed(memslots, node)
    _move(memslots, fanout, columns, node, index + ONE, node, index, count - index - ONE)
    store_relaxed(memslots, node, count - ONE)


@compiled
def _largest_end(memslots: Words, node: U64, fanout: U64) -> U64:
    """The largest end of a node's entries. O(fan-out)."""
    end = u64(0)
    count = load_relaxed(memslots, node)
    entry = u64(0)
    while entry < count:
        end = max(end, load_relaxed(memslots, node + ONE + fanout + fanout + entry))
        entry += ONE
    return end


@compiled
def _refresh(memslots: Words, parent: U64, fanout: U64, columns: U64, index: U64) -> bool:
    """Make entry ``index`` the summary of its child again; returns whether it changed. O(fan-out)."""
    at = parent + ONE + index
    child = load_relaxed(memslots, at + fanout)
    changed = False
    key = load_relaxed(memslots, child + ONE)
    if key != load_relaxed(memslots, at):
        store_relaxed(memslots, at, key)
        changed = True
    if columns == 4:
        tie = load_relaxed(memslots, child + ONE + fanout * u64(3))
        if tie != load_relaxed(memslots, at + fanout * u64(3)):
            store_relaxed(memslots, at + fanout * u64(3), tie)
            changed = True
    end = _largest_end(memslots, child, fanout)
    if end != load_relaxed(memslots, at + fanout + fanout):
        store_relaxed(memslots, at + fanout + fanout, end)
        changed = True
    return changed


@compiled
def _take_node(memslots: Words, desk: Own) -> U64:
    """A node from the free list, else one never used; there is one: see ``geometry``."""
    node = desk[NODE_FREE]
    if node == 0:
        node = desk[NODE_NEXT]
        desk[NODE_NEXT] = node + desk[NODE_WORDS]
    else:
        desk[NODE_FREE] = load_relaxed(memslots, node + ONE)
    desk[NODES_USED] += ONE
    store_relaxed(memslots, node, u64(0))
    return node


@compiled
def _give_node(memslots: Words, desk: Own, node: U64) -> None:
    """Back to the free list. At once: nodes belong to one set, and no reader is in the set that is edited."""
    store_relaxed(memslots, node, u64(0))
    store_relaxed(memslots, node + ONE, desk[NODE_FREE])
    desk[NODE_FREE] = node
    desk[NODES_USED] -= ONE


@compiled
def tree_insert(memslots: Words, desk: Own, tree: U64, key: U64, tie: U64, value: U64, end: U64) -> None:
    """Insert an entry whose (key, tie) is not there. O(log n)."""
    fanout = load_relaxed(memslots, tree + FANOUT)
    columns = load_relaxed(memslots, tree + COLUMNS)
    height = load_relaxed(memslots, tree + HEIGHT)
    last = _descend(memslots, desk, tree, key, tie)
    node = desk[PATH]
    index = desk[PATH + ONE]
    if load_relaxed(memslots, node) > 0:
        seen = load_relaxed(memslots, node + ONE + index)
        if seen < key or (seen == key and load_relaxed(memslots, node + ONE + fanout * u64(3) + index) < tie):
            index += ONE
    level = u64(0)
    growing = True  # an entry waits to be inserted into `node`
    while True:
        if growing:
            count = load_relaxed(memslots, node)
            right = u64(0)
            if count == fanout:
                keep = count if index == count and level >= last else count >> 1
                right = _take_node(memslots, desk)
                _move(memslots, fanout, columns, node, keep, right, u64(0), count - keep)
                store_relaxed(memslots, right, count - keep)
                store_relaxed(memslots, node, keep)
                if index > keep or keep == count:
                    _open_gap(memslots, right, fanout, columns, index - keep)
                    _write(memslots, right, fanout, columns, index - keep, Entry(key, value, end, tie))
                else:
                    _open_gap(memslots, node, fanout, columns, index)
                    _write(memslots, node, fanout, columns, index, Entry(key, value, end, tie))
            else:
                _open_gap(memslots, node, fanout, columns, index)
                _write(memslots, node, fanout, columns, index, Entry(key, value, end, tie))
            growing = right != 0
            value = right
        if level == height:
            break
        level += ONE
        parent = desk[PATH + level + level]
        index = desk[PATH + level + level + ONE]
        changed = _refresh(memslots, parent, fanout, columns, index)
        if growing:  # the new node's summary is filled in by the refresh below
            key = load_relaxed(memslots, value + ONE)
            tie = load_relaxed(memslots, value + ONE + fanout * u64(3)) if columns == 4 else u64(0)
            end = _largest_end(memslots, value, fanout)
            index += ONE
        elif not changed:
            return
        node = parent
    if growing:
        root = _take_node(memslots, desk)
        store_relaxed(memslots, root, u64(2))
        store_relaxed(memslots, root + ONE + fanout, node)
        store_relaxed(memslots, root + ONE + fanout + ONE, value)
        _refresh(memslots, root, fanout, columns, u64(0))
        _refresh(memslots, root, fanout, columns, ONE)
        store_relaxed(memslots, tree + ROOT, root)
        store_relaxed(memslots, tree + HEIGHT, height + ONE)


@compiled
def _mend(memslots: Words, desk: Own, parent: U64, fanout: U64, columns: U64, index: U64) -> None:
    """Child ``index`` is less than half full and has a sibling: merge the two, or share their entries evenly."""
    first = index - ONE if index > 0 else index
    left = load_relaxed(memslots, parent + ONE + fanout + first)
    right = load_relaxed(memslots, parent + ONE + fanout + first + ONE)
    a = load_relaxed(memslots, left)
    b = load_relaxed(memslots, right)
    if a + b <= fanout:
        _move(memslots, fanout, columns, right, u64(0), left, a, b)
        store_relaxed(memslots, left, a + b)
        _give_node(memslots, desk, right)
        _close_gap(memslots, parent, fanout, columns, first + ONE)
    else:
        half = (a + b) >> 1
        if a > half:
            _move(memslots, fanout, columns, right, u64(0), right, a - half, b)
            _move(memslots, fanout, columns, left, half, right, u64(0), a - half)
        else:
            _move(memslots, fanout, columns, right, u64(0), left, a, half - a)
            _move(memslots, fanout, columns, right, half - a, right, u64(0), b + a - half)
        store_relaxed(memslots, left, half)
        store_relaxed(memslots, right, a + b - half)
        _refresh(memslots, parent, fanout, columns, first + ONE)
    _refresh(memslots, parent, fanout, columns, first)


@compiled
def tree_remove(memslots: Words, desk: Own, tree: U64, key: U64, tie: U64) -> None:
    """Remove the entry (key, tie), which must be there. O(log n)."""
    fanout = load_relaxed(memslots, tree + FANOUT)
    columns = load_relaxed(memslots, tree + COLUMNS)
    height = load_relaxed(memslots, tree + HEIGHT)
    _descend(memslots, desk, tree, key, tie)
    node = desk[PATH]
    _close_gap(memslots, node, fanout, columns, desk[PATH + ONE])
    level = u64(0)
    while level < height:
        level += ONE
        parent = desk[PATH + level + level]
        index = desk[PATH + level + level + ONE]
        count = load_relaxed(memslots, node)
        if count == 0:
            _give_node(memslots, desk, node)
            _close_gap(memslots, parent, fanout, columns, index)
        elif count < fanout >> 1 and load_relaxed(memslots, parent) > 1:
            _mend(memslots, desk, parent, fanout, columns, index)
        elif not _refresh(memslots, parent, fanout, columns, index):
            break
        node = parent
    root = load_relaxed(memslots, tree + ROOT)
    while height > 0 and load_relaxed(memslots, root) == 1:
        child = load_relaxed(memslots, root + ONE + fanout)
        _give_node(memslots, desk, root)
        root = child
        height -= ONE
    store_relaxed(memslots, tree + ROOT, root)
    store_relaxed(memslots, tree + HEIGHT, height)


@compiled
def tree_replace(memslots: Words, desk: Own, tree: U64, key: U64, tie: U64, value: U64) -> None:
    """Give the entry (key, tie), which must be there, another value. O(log n)."""
    _descend(memslots, desk, tree, key, tie)
    fanout = load_relaxed(memslots, tree + FANOUT)
    store_relaxed(memslots, desk[PATH] + ONE + fanout + desk[PATH + ONE], value)
