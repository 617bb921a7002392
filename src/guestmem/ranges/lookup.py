"""What readers do with a range map: look one index up, find the range around it, copy ranges out.

Readers take no lock. They hold an SRCU section while a writer may store (``srcu_enter``), load the root once, with
acquire, and see the whole tree that it was published with: nodes that a root can reach are never written again.
Relaxed loads suffice below the root: the writer filled every node before it released the root.
Idea: Linux ``lib/maple_tree.c`` (``mtree_load``, ``mas_walk``), where nodes that die are marked and readers restart;
here a reader keeps the tree that it started with.
"""

from __future__ import annotations

from ..atomics import load_acquire, load_relaxed
from ..cache_lines import count_at_most, prefetch
from ..compiled import ONE, TWO, U64, Own, Words, compiled, const, u64
from .layout import FOUR_LINES, HEIGHT_BITS, HEIGHT_MASK, ROOT, WIDTH

__all__ = ["entry_around", "ranges_copy", "ranges_find", "ranges_gap", "ranges_load", "ranges_load_many"]

_EIGHT = const(8)
_LAST = const((1 << 64) - 1)


@compiled(inline=True)
def node_count(ranges: Words, node: U64, width: U64) -> U64:
    """Entries of a node."""
    return load_relaxed(ranges, node + width + width - TWO)


@compiled(inline=True)
def _search(ranges: Words, node: U64, width: U64, index: U64) -> U64:
    """How many keys of a node, but for its first, are at most ``index``. O(width / 8).

    All its lines of keys, asked for side by side; no branch depends on a key. Keys past the count are 2**64 - 1, which
    only that very index reaches. Vector loads are right here: nobody writes a node that a reader can reach.
    """
    found = count_at_most(ranges, node, index)
    if width == FOUR_LINES:  # the usual width, without a loop: half the time of a load from many ranges
        return (
            found
            + count_at_most(ranges, node + _EIGHT, index)
            + count_at_most(ranges, node + u64(16), index)
            + count_at_most(ranges, node + u64(24), index)
            - ONE
        )
    at = _EIGHT
    while at < width:
        found += count_at_most(ranges, node + at, index)
        at += _EIGHT
    return found - ONE


@compiled(inline=True)
def _expect_values(ranges: Words, values: U64) -> None:
    """Ask for four lines of values, one of which is read when the keys have been compared: one miss, not two.

    Of a wider node these are not all, of a narrower one more than it has; nothing is read.
    """
    prefetch(ranges, values)
    prefetch(ranges, values + _EIGHT)
    prefetch(ranges, values + u64(16))
    prefetch(ranges, values + u64(24))


@compiled
def entry_around(ranges: Words, node: U64, width: U64, count: U64, index: U64) -> U64:
    """Which entry of a node is around ``index``. O(width / 8)."""
    return min(_search(ranges, node, width, index), count - ONE)


@compiled(inline=True)
def load_from(ranges: Words, root: U64, index: U64) -> U64:
    """The value at ``index`` in the tree ``root``; 0 for none. O(log n)."""
    width = load_relaxed(ranges, WIDTH)
    height = root & HEIGHT_MASK
    node = root >> HEIGHT_BITS
    while True:
        if height <= 1:  # what lies above is in a nearer cache
            _expect_values(ranges, node + width)
        at = _search(ranges, node, width, index)
        if index == _LAST:
            at = node_count(ranges, node, width) - ONE
        node = load_relaxed(ranges, node + width + at)
        if height == 0:
            return node
        height -= ONE


@compiled
def ranges_load(ranges: Words, index: U64) -> U64:
    """The value at ``index``, 0 for none. O(log n). Inside an SRCU section if a writer may store meanwhile."""
    return load_from(ranges, load_acquire(ranges, ROOT), index)


@compiled(nogil=True)
def ranges_load_many(ranges: Words, root: U64, indices: Own, values: Own, count: U64) -> None:
    """Write the values at ``count`` indices in the tree ``root``, which a snapshot or section holds. O(log n) each."""
    number = u64(0)
    while number < count:
        values[number] = load_from(ranges, root, indices[number])
        number += ONE


@compiled
def find_from(ranges: Words, root: U64, index: U64, found: Own) -> None:
    """Write start, last index and value of what is around ``index`` in the tree ``root``, 0 for a gap. O(log n)."""
    width = load_relaxed(ranges, WIDTH)
    height = root & HEIGHT_MASK
    node = root >> HEIGHT_BITS
    last = _LAST
    while True:
        count = node_count(ranges, node, width)
        at = entry_around(ranges, node, width, count, index)
        if at + ONE < count:
            last = load_relaxed(ranges, node + at + ONE) - ONE
        if height == 0:
            break
        node = load_relaxed(ranges, node + width + at)
        height -= ONE
    found[0] = load_relaxed(ranges, node + at)
    found[1] = last
    found[2] = load_relaxed(ranges, node + width + at)


@compiled
def ranges_find(ranges: Words, index: U64, found: Own) -> None:
    """As ``find_from``, in the tree of now. ``found[1] + 1`` is the next index whose value is different."""
    find_from(ranges, load_acquire(ranges, ROOT), index, found)


@compiled(nogil=True)
def ranges_copy(ranges: Words, root: U64, first: U64, last: U64, out: Own, room: U64) -> U64:
    """Copy ranges that have a value and meet [first, last], clipped to it: start, last index, value, three words each.

    Up to ``room`` of them, ascending; returns how many. If it is ``room``, go on after the last one copied.
    O(log n + entries passed).
    """
    width = load_relaxed(ranges, WIDTH)
    copied = u64(0)
    index = first
    while copied < room:
        node = root >> HEIGHT_BITS
        height = root & HEIGHT_MASK
        bound = _LAST  # last index that this leaf knows of
        while height > 0:
            count = node_count(ranges, node, width)
            at = entry_around(ranges, node, width, count, index)
            if at + ONE < count:
                bound = load_relaxed(ranges, node + at + ONE) - ONE
            node = load_relaxed(ranges, node + width + at)
            height -= ONE
        count = node_count(ranges, node, width)
        at = entry_around(ranges, node, width, count, index)
        while at < count and copied < room:
            start = load_relaxed(ranges, node + at)
            if start > last:
                return copied
            end = bound
            if at + ONE < count:
                end = load_relaxed(ranges, node + at + ONE) - ONE
            value = load_relaxed(ranges, node + width + at)
            if value != 0:
                out[copied * u64(3)] = max(start, first)
                out[copied * u64(3) + ONE] = min(end, last)
                out[copied * u64(3) + u64(2)] = value
                copied += ONE
            at += ONE
        if at < count or bound >= last:
            return copied
        index = bound + ONE
    return copied


@compiled(nogil=True)
def ranges_gap(ranges: Words, root: U64, first: U64, last: U64, size: U64, found: Own) -> bool:
    """The first gap of at least ``size`` indices within [first, last]: writes its start and last index, clipped.

    Returns whether there is one. O(log n) a leaf, and the entries passed: no gaps are kept in inner nodes (the
    maple tree's allocation mode keeps them, at ten children a node instead of sixteen).
    """
    width = load_relaxed(ranges, WIDTH)
    index = first
    while True:
        node = root >> HEIGHT_BITS
        height = root & HEIGHT_MASK
        bound = _LAST
        while height > 0:
            count = node_count(ranges, node, width)
            at = entry_around(ranges, node, width, count, index)
            if at + ONE < count:
                bound = load_relaxed(ranges, node + at + ONE) - ONE
            node = load_relaxed(ranges, node + width + at)
            height -= ONE
        count = node_count(ranges, node, width)
        at = entry_around(ranges, node, width, count, index)
        while at < count:
            start = max(load_relaxed(ranges, node + at), first)
            if start > last:
                return False
            end = bound
            if at + ONE < count:
                end = load_relaxed(ranges, node + at + ONE) - ONE
            end = min(end, last)
            if load_relaxed(ranges, node + width + at) == 0 and end - start >= size - ONE:
                found[0] = start
                found[1] = end
                return True
            at += ONE
        if bound >= last:
            return False
        index = bound + ONE
