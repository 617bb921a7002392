"""A store into a range map: one B-tree whose entries tile the space, edited by replacing a stretch of boundaries.

Storing ``value`` over [start, last] removes every boundary in [start, last + 1] and puts in at most two: one at
``start``, unless the range before has the value already, and one at ``last + 1``, unless what was there does. So equal
neighbours always merge. The entries that go lie between two paths down the tree; on each level the two nodes at the
paths' ends, and what is between, become up to three nodes, which the level above takes in the same way. Subtrees in
between go as a whole. Cost: O(log n + ranges replaced).

*In place* (no readers): a leaf that stays within its bounds is edited where it is. *Shared*: no node that a reader can
reach is written; each level of the path gets a new node, the root is published by one store with release, and the old
nodes wait for their grace period. Before the first change the nodes for the worst case are counted, so a store is
whole or has not begun. Idea: Linux ``lib/maple_tree.c`` (``mas_wr_spanning_store``), which merges no equal values.
"""

from __future__ import annotations

from ..atomics import load_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .edit import distribute, edit_node, gather, new_root, one_node
from .layout import (
    CHAIN_COUNT,
    CHAIN_LENGTH,
    CLEAR,
    COUNT,
    END,
    FANOUT,
    FREE_COUNT,
    HEIGHT_BITS,
    HEIGHT_MASK,
    LEVELS,
    MINIMUM,
    NEW_COUNT,
    NEW_KEYS,
    NEW_VALUES,
    NEXT,
    NODE_WORDS,
    NOMEM,
    PATH_A,
    PATH_B,
    RESERVED,
    RESERVED_ROOM,
    ROOT,
    SCRATCH,
    SHARED,
    SKIP,
    STORES,
    WAITING,
    WIDTH,
)
from .lookup import entry_around, node_count
from .nodes import forget_values, free_expired, give_node, give_subtree

__all__ = ["ranges_store", "ranges_store_many", "worst_nodes"]

_LAST = const((1 << 64) - 1)


@compiled
def worst_nodes(height: U64) -> U64:
    """Nodes that a store takes at most: three a level, and a root above them."""
    return u64(3) * (height + ONE) + ONE


@compiled
def _descend(ranges: Words, desk: Own, path: U64, root: U64, index: U64) -> U64:
    """Write the path to the entry around ``index``; returns the last index that this leaf covers. O(log n)."""
    width = load_relaxed(ranges, WIDTH)
    level = root & HEIGHT_MASK
    node = root >> HEIGHT_BITS
    bound = _LAST
    while True:
        count = node_count(ranges, node, width)
        at = entry_around(ranges, node, width, count, index)
        desk[path + level + level] = node
        desk[path + level + level + ONE] = at
        if level == 0:
            return bound
        if at + ONE < count:
            bound = load_relaxed(ranges, node + at + ONE) - ONE
        node = load_relaxed(ranges, node + width + at)
        level -= ONE


@compiled
def _rightmost(ranges: Words, desk: Own, level: U64, height: U64) -> bool:
    """Whether path B's node of ``level`` is the last of its level."""
    width = load_relaxed(ranges, WIDTH)
    while level < height:
        level += ONE
        if desk[PATH_B + level + level + ONE] + ONE < node_count(ranges, desk[PATH_B + level + level], width):
            return False
    return True


@compiled
def _next_node(ranges: Words, desk: Own, level: U64) -> None:
    """Move path B to the next node of ``level``; there is one."""
    width = load_relaxed(ranges, WIDTH)
    up = level + ONE
    while desk[PATH_B + up + up + ONE] + ONE == node_count(ranges, desk[PATH_B + up + up], width):
        up += ONE
    desk[PATH_B + up + up + ONE] += ONE
    while up > level:
        node = load_relaxed(ranges, desk[PATH_B + up + up] + width + desk[PATH_B + up + up + ONE])
        up -= ONE
        desk[PATH_B + up + up] = node
        desk[PATH_B + up + up + ONE] = u64(0)


@compiled
def _give_between(ranges: Words, desk: Own, level: U64, shared: bool) -> None:
    """Give back the subtrees between the two paths that hang below their nodes of ``level``."""
    width = load_relaxed(ranges, WIDTH)
    left = desk[PATH_A + level + level]
    right = desk[PATH_B + level + level]
    child = desk[PATH_A + level + level + ONE] + ONE
    stop = desk[PATH_B + level + level + ONE]
    if left != right:
        count = node_count(ranges, left, width)
        while child < count:
            give_subtree(ranges, desk, load_relaxed(ranges, left + width + child), level - ONE, shared)
            child += ONE
        child = u64(0)
    while child < stop:
        give_subtree(ranges, desk, load_relaxed(ranges, right + width + child), level - ONE, shared)
        child += ONE


@compiled
def _boundaries(ranges: Words, desk: Own, start: U64, last: U64, value: U64) -> bool:
    """Write the two paths and the boundaries to put in; returns whether the store changes anything.

    Path A ends at the entry before ``start``, whose boundary stays, path B at the one that covers ``last + 1``; at
    the ends of the space, before the first or at the last entry. Index 0 of path A counts the entries that stay, of
    path B those that do not.
    """
    root = load_relaxed(ranges, ROOT)
    width = load_relaxed(ranges, WIDTH)
    new = u64(0)
    before = start - ONE if start > 0 else start
    bound = _descend(ranges, desk, PATH_A, root, before)
    left = desk[PATH_A]
    keep = u64(0)
    if start > 0:
        keep = desk[PATH_A + ONE] + ONE
    if start == 0 or load_relaxed(ranges, left + width + keep - ONE) != value:
        desk[NEW_KEYS] = start
        desk[NEW_VALUES] = value
        new = ONE
    after = last + ONE if last < _LAST else last
    if after <= bound:  # in the same leaf: its path is the same above
        level = u64(0)
        while level <= root & HEIGHT_MASK:
            desk[PATH_B + level + level] = desk[PATH_A + level + level]
            desk[PATH_B + level + level + ONE] = desk[PATH_A + level + level + ONE]
            level += ONE
        desk[PATH_B + ONE] = entry_around(ranges, left, width, node_count(ranges, left, width), after)
    else:
        _descend(ranges, desk, PATH_B, root, after)
    right = desk[PATH_B]
    at = desk[PATH_B + ONE]
    if last < _LAST:
        seen = load_relaxed(ranges, right + width + at)
        if seen != value:
            desk[NEW_KEYS + new] = after
            desk[NEW_VALUES + new] = seen
            new += ONE
    desk[NEW_COUNT] = new
    desk[PATH_A + ONE] = keep
    desk[PATH_B + ONE] = at + ONE
    if left != right or keep + new != at + ONE:
        return True
    entry = u64(0)
    while entry < new:
        if (
            load_relaxed(ranges, left + keep + entry) != desk[NEW_KEYS + entry]
            or load_relaxed(ranges, left + width + keep + entry) != desk[NEW_VALUES + entry]
        ):
            return True
        entry += ONE
    return False


@compiled
def _count_leaves(ranges: Words, desk: Own) -> None:
    """Count the ranges with a value that come and go in the two leaves at the paths' ends."""
    width = load_relaxed(ranges, WIDTH)
    left = desk[PATH_A]
    right = desk[PATH_B]
    if left == right:
        forget_values(ranges, desk, left, desk[PATH_A + ONE], desk[PATH_B + ONE])
    else:
        forget_values(ranges, desk, left, desk[PATH_A + ONE], node_count(ranges, left, width))
        forget_values(ranges, desk, right, u64(0), desk[PATH_B + ONE])
    entry = u64(0)
    while entry < desk[NEW_COUNT]:
        if desk[NEW_VALUES + entry] != 0:
            desk[COUNT] += ONE
        entry += ONE


@compiled
def _level(ranges: Words, desk: Own, level: U64, height: U64, shared: bool) -> bool:
    """Put the new entries into ``level``; returns whether the level above is untouched by it, so that all is done.

    Index 0 of path A counts the entries before them that stay, of path B those before the ones that stay behind them.
    """
    width = load_relaxed(ranges, WIDTH)
    left = desk[PATH_A + level + level]
    right = desk[PATH_B + level + level]
    first = desk[PATH_A + level + level + ONE]
    end = desk[PATH_B + level + level + ONE]
    count = node_count(ranges, right, width)
    total = first + desk[NEW_COUNT] + count - end
    last_of_level = _rightmost(ranges, desk, level, height)
    enough = total >= desk[MINIMUM] or last_of_level
    fits = total <= desk[FANOUT]
    if left == right and enough and fits and not shared and (level == 0 or level < height or total > 1):
        edit_node(ranges, desk, left, first, end)
        return True
    if enough and fits:
        one_node(ranges, desk, left, first, right, end)
    else:
        at = gather(ranges, desk, left, u64(0), first, u64(0))
        entry = u64(0)
        values = SCRATCH + u64(3) * width
        while entry < desk[NEW_COUNT]:
            desk[SCRATCH + at] = desk[NEW_KEYS + entry]
            desk[values + at] = desk[NEW_VALUES + entry]
            at += ONE
            entry += ONE
        at = gather(ranges, desk, right, end, count, at)
        if not enough:  # too few: together with the next node, of which there is one
            if left != right:
                give_node(ranges, desk, right, shared)
                desk[SKIP + level] = right
            _next_node(ranges, desk, level)
            right = desk[PATH_B + level + level]
            at = gather(ranges, desk, right, u64(0), node_count(ranges, right, width), at)
        distribute(ranges, desk, at, last_of_level and end == count)
    give_node(ranges, desk, left, shared)
    if left != right:
        give_node(ranges, desk, right, shared)
    return False


@compiled
def _store(ranges: Words, desk: Own, start: U64, last: U64, value: U64, kept: U64) -> U64:
    """As ``ranges_store``, once."""
    height = load_relaxed(ranges, ROOT) & HEIGHT_MASK
    room = desk[FREE_COUNT] + (desk[END] - desk[NEXT]) // desk[NODE_WORDS]
    needed = worst_nodes(height)
    if kept != CLEAR:
        needed += worst_nodes(u64(LEVELS))
        if kept != RESERVED_ROOM:
            needed += desk[RESERVED]
    if room < needed:
        return NOMEM
    if not _boundaries(ranges, desk, start, last, value):
        return u64(0)
    shared = desk[SHARED] != 0
    _count_leaves(ranges, desk)
    desk[STORES] += ONE
    level = u64(0)
    while level <= height:
        desk[SKIP + level] = u64(0)
        level += ONE
    level = u64(0)
    while not _level(ranges, desk, level, height, shared):
        if level == height:
            new_root(ranges, desk, height, shared)
            break
        level += ONE
        _give_between(ranges, desk, level, shared)
        desk[PATH_B + level + level + ONE] += ONE
    return u64(0)


@compiled
def ranges_store(ranges: Words, desk: Own, freed: Own, start: U64, last: U64, value: U64, kept: U64) -> U64:
    """Store ``value`` over [start, last], both included; 0 erases. One writer at a time. O(log n + ranges replaced).

    ``kept``: 0, or RESERVED_ROOM or CLEAR, which may use nodes that are kept for them. Returns 0, or NOMEM and nothing
    has changed: there may not be enough nodes, or they wait for readers. Never waits.
    """
    if desk[CHAIN_COUNT] >= CHAIN_LENGTH:
        free_expired(ranges, desk, freed)
    status = _store(ranges, desk, start, last, value, kept)
    if status == NOMEM and desk[WAITING] != 0:
        free_expired(ranges, desk, freed)
        status = _store(ranges, desk, start, last, value, kept)
    return status


@compiled
def ranges_store_many(ranges: Words, desk: Own, freed: Own, stores: Own, first: U64, count: U64) -> U64:
    """Stores [first, count) of ``stores`` (start, last, value: three words each); returns how far it came."""
    while first < count:
        at = first * u64(3)
        if ranges_store(ranges, desk, freed, stores[at], stores[at + ONE], stores[at + u64(2)], u64(0)) != 0:
            break
        first += ONE
    return first
