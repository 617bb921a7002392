"""Other ways to keep values of ranges, for comparison only: compiled ones, and what Python's package index has.

Compiled, over flat words, as our own: a sorted array with bisection; a radix tree of 64-slot nodes with one entry a
page (the kernel's xarray as memory attributes used it); the same tree with power-of-two entries (xarray's multi-index
entries, which our version also splits). Each is a class with ``store(first, last, value)`` and ``load(index)``.
The interval tree is in ``interval_peer.py``, Rust's ``rangemap`` in ``rust_peer.py``.
"""

from __future__ import annotations

import bisect
import importlib
from typing import Any

from guestmem.atomics import load_relaxed, store_relaxed
from guestmem.compiled import U64, Own, Words, compiled, const, u64, words, wrapping
from guestmem.ranges import RangeMap
from guestmem.ranges.lookup import ranges_load
from guestmem.ranges.store import ranges_store

_ONE = const(1)
_SIX = const(6)
_SLOTS = const(64)
_BLOCK = const(1 << 63)  # a word of a radix tree that is a value, not a child


# --- a sorted array -------------------------------------------------------------------------------------------------


@compiled
def flat_load(flat: Words, room: U64, index: U64) -> U64:
    """Bisection; the array tiles the space: +0 count, then starts, then values."""
    low = u64(0)
    count = load_relaxed(flat, u64(0))
    while count > 1:
        half = count >> 1
        low += half * u64(load_relaxed(flat, _ONE + low + half) <= index)
        count -= half
    return load_relaxed(flat, _ONE + room + low)


@compiled
def flat_store(flat: Words, room: U64, first: U64, last: U64, value: U64) -> None:
    """Overwrite and merge by moving the rest of both arrays: O(n)."""
    count = load_relaxed(flat, u64(0))
    left = u64(0)  # the first start that is not before `first`
    span = count
    while span > 0:
        half = span >> 1
        if load_relaxed(flat, _ONE + left + half) < first:
            left += half + _ONE
            span -= half + _ONE
        else:
            span = half
    right = left
    after = u64(0)
    if left > 0:
        after = load_relaxed(flat, _ONE + room + left - _ONE)
    before = after
    while right < count and load_relaxed(flat, _ONE + right) <= last + _ONE:
        after = load_relaxed(flat, _ONE + room + right)
        right += _ONE
    opens = first == 0 or before != value
    new = u64(opens) + u64(after != value)
    shift_to = left + new
    if shift_to <= right:
        at = right
        while at < count:
            store_relaxed(flat, _ONE + shift_to + at - right, load_relaxed(flat, _ONE + at))
            store_relaxed(flat, _ONE + room + shift_to + at - right, load_relaxed(flat, _ONE + room + at))
            at += _ONE
    else:
        at = count
        while at > right:
            at -= _ONE
            store_relaxed(flat, _ONE + shift_to + at - right, load_relaxed(flat, _ONE + at))
            store_relaxed(flat, _ONE + room + shift_to + at - right, load_relaxed(flat, _ONE + room + at))
    at = left
    if opens:
        store_relaxed(flat, _ONE + at, first)
        store_relaxed(flat, _ONE + room + at, value)
        at += _ONE
    if after != value:
        store_relaxed(flat, _ONE + at, last + _ONE)
        store_relaxed(flat, _ONE + room + at, after)
    store_relaxed(flat, u64(0), shift_to + count - right)


# --- radix trees ----------------------------------------------------------------------------------------------------


@compiled
def radix_load(radix: Words, levels: U64, index: U64) -> U64:
    """Six bits a level; a block's value ends the walk."""
    node = _SLOTS
    level = levels
    while level > 0:
        level -= _ONE
        word = load_relaxed(radix, node + ((index >> (_SIX * level)) & u64(63)))
        if word & _BLOCK != 0 or word == 0:
            return word & (_BLOCK - _ONE)
        node = word
    return u64(0)


@compiled
def _child(radix: Words, at: U64) -> U64:
    """The node below the word ``at``; made, and filled with the block that stood there, if there is none."""
    word = load_relaxed(radix, at)
    if word != 0 and word & _BLOCK == 0:
        return word
    node = load_relaxed(radix, u64(0))
    store_relaxed(radix, u64(0), node + _SLOTS)
    slot = u64(0)
    while slot < _SLOTS:
        store_relaxed(radix, node + slot, word)
        slot += _ONE
    store_relaxed(radix, at, node)
    return node


@compiled
def radix_store(radix: Words, levels: U64, first: U64, last: U64, value: U64) -> None:
    """Page by page, each from the root, as ``xa_store`` in a loop."""
    word = value | _BLOCK if value != 0 else value
    index = first
    while index <= last:
        node = _SLOTS
        level = levels - _ONE
        while level > 0:
            node = _child(radix, node + ((index >> (_SIX * level)) & u64(63)))
            level -= _ONE
        store_relaxed(radix, node + (index & u64(63)), word)
        index += _ONE


@compiled
def blocks_store(radix: Words, levels: U64, first: U64, last: U64, value: U64) -> None:
    """The largest aligned blocks that fit; children below a block that is stored are left behind."""
    word = value | _BLOCK if value != 0 else value
    index = first
    while index <= last:
        level = u64(0)
        while level + _ONE < levels:
            size = _ONE << (_SIX * (level + _ONE))
            if index & (size - _ONE) != 0 or last - index < size - _ONE:
                break
            level += _ONE
        node = _SLOTS
        depth = levels - _ONE
        while depth > level:
            node = _child(radix, node + ((index >> (_SIX * depth)) & u64(63)))
            depth -= _ONE
        store_relaxed(radix, node + ((index >> (_SIX * level)) & u64(63)), word)
        index += _ONE << (_SIX * level)


# --- loops that are timed -------------------------------------------------------------------------------------------


@compiled(nogil=True)
def ours_loads(ranges: Words, indices: Own, count: U64) -> U64:
    total = u64(0)
    at = u64(0)
    while at < count:
        total = wrapping(total + ranges_load(ranges, indices[at]))
        at += _ONE
    return total


@compiled(nogil=True)
def ours_stores(ranges: Words, desk: Own, freed: Own, stores: Own, count: U64) -> U64:
    refused = u64(0)
    at = u64(0)
    while at < count:
        place = at * u64(3)
        if ranges_store(ranges, desk, freed, stores[place], stores[place + _ONE], stores[place + u64(2)], u64(0)) != 0:
            refused += _ONE
        at += _ONE
    return refused


@compiled(nogil=True)
def flat_loads(flat: Words, room: U64, indices: Own, count: U64) -> U64:
    total = u64(0)
    at = u64(0)
    while at < count:
        total = wrapping(total + flat_load(flat, room, indices[at]))
        at += _ONE
    return total


@compiled(nogil=True)
def flat_stores(flat: Words, room: U64, stores: Own, count: U64) -> None:
    at = u64(0)
    while at < count:
        place = at * u64(3)
        flat_store(flat, room, stores[place], stores[place + _ONE], stores[place + u64(2)])
        at += _ONE


@compiled(nogil=True)
def radix_loads(radix: Words, levels: U64, indices: Own, count: U64) -> U64:
    total = u64(0)
    at = u64(0)
    while at < count:
        total = wrapping(total + radix_load(radix, levels, indices[at]))
        at += _ONE
    return total


@compiled(nogil=True)
def radix_stores(radix: Words, levels: U64, stores: Own, count: U64, blocks: bool) -> None:
    at = u64(0)
    while at < count:
        place = at * u64(3)
        if blocks:
            blocks_store(radix, levels, stores[place], stores[place + _ONE], stores[place + u64(2)])
        else:
            radix_store(radix, levels, stores[place], stores[place + _ONE], stores[place + u64(2)])
        at += _ONE


class Ours:
    """``RangeMap``; ``readers`` 0 stores in place, 1 copies what readers could see."""

    compiled = True

    def __init__(self, most: int, readers: int = 0) -> None:
        self.map = RangeMap(capacity=2 * most + 1000, readers=readers)
        self.name = "guestmem, beside readers" if readers else "guestmem, in place"

    def loads(self, indices: Any, count: int) -> int:
        return int(ours_loads(self.map.words, indices, count))

    def stores(self, stores: Any, count: int) -> None:
        assert not ours_stores(self.map.words, self.map._desk, self.map._freed, stores, count)  # noqa: SLF001

    def load(self, index: int) -> int:
        return self.map.get(index)


class Flat:
    """A sorted array."""

    compiled, name = True, "sorted array, bisection"

    def __init__(self, most: int) -> None:
        self.room = 4 * most + 1000
        self.words = words(1 + 2 * self.room)
        store_word(self.words, 0, 1)

    def loads(self, indices: Any, count: int) -> int:
        return int(flat_loads(self.words, self.room, indices, count))

    def stores(self, stores: Any, count: int) -> None:
        flat_stores(self.words, self.room, stores, count)

    def load(self, index: int) -> int:
        return int(flat_load(self.words, self.room, index))


class Radix:
    """A radix tree of 64-slot nodes, one entry a page, or with blocks."""

    compiled = True

    def __init__(self, pages: int, *, blocks: bool = False, stores: int = 0) -> None:
        self.blocks = blocks
        self.name = "radix tree, power-of-two entries" if blocks else "radix tree, an entry a page"
        self.levels = max(1, -(-(pages - 1).bit_length() // 6))
        nodes = sum(-(-pages // 64**level) for level in range(1, self.levels + 1)) + 8 + 4 * self.levels * stores
        self.words = words(64 * (nodes + 2))
        store_word(self.words, 0, 128)

    def loads(self, indices: Any, count: int) -> int:
        return int(radix_loads(self.words, self.levels, indices, count))

    def stores(self, stores: Any, count: int) -> None:
        radix_stores(self.words, self.levels, stores, count, self.blocks)

    def load(self, index: int) -> int:
        return int(radix_load(self.words, self.levels, index))


@compiled
def store_word(to: Words, at: U64, value: U64) -> None:
    store_relaxed(to, at, value)


# --- Python's -------------------------------------------------------------------------------------------------------


class Lists:
    """Two lists and ``bisect``; equal neighbours merge."""

    compiled, name = False, "two lists, bisect"

    def __init__(self) -> None:
        self.starts, self.values = [0], [0]

    def load(self, index: int) -> int:
        return self.values[bisect.bisect_right(self.starts, index) - 1]

    def store(self, first: int, last: int, value: int) -> None:
        left = bisect.bisect_left(self.starts, first)
        right = bisect.bisect_right(self.starts, last + 1)
        before = self.values[left - 1] if left else None
        after = self.values[right - 1]
        new = [(first, value)] if before != value else []
        new += [(last + 1, after)] if after != value else []
        self.starts[left:right] = [start for start, _ in new]
        self.values[left:right] = [value for _, value in new]


class Sorted:
    """``SortedDict`` of starts; equal neighbours merge."""

    compiled, name = False, "SortedDict"

    def __init__(self) -> None:
        self.dict = importlib.import_module("sortedcontainers").SortedDict({0: 0})

    def load(self, index: int) -> int:
        return int(self.dict.peekitem(self.dict.bisect_right(index) - 1)[1])

    def store(self, first: int, last: int, value: int) -> None:
        after = self.load(last + 1)
        left = self.dict.bisect_left(first)
        before = self.dict.peekitem(left - 1)[1] if left else None
        for key in list(self.dict.irange(first, last + 1)):
            del self.dict[key]
        if before != value:
            self.dict[first] = value
        if after != value:
            self.dict[last + 1] = after


class Chopped:
    """``intervaltree``, an augmented interval tree: overwrite is chop, then add; neighbours do not merge."""

    compiled, name = False, "intervaltree, chop and add"

    def __init__(self) -> None:
        self.tree = importlib.import_module("intervaltree").IntervalTree()

    def load(self, index: int) -> int:
        return next((int(each.data) for each in self.tree[index]), 0)

    def store(self, first: int, last: int, value: int) -> None:
        self.tree.chop(first, last + 1)
        if value:
            self.tree.addi(first, last + 1, value)


class Portions:
    """``portion.IntervalDict``: a true map, which walks all values on each store."""

    compiled, name = False, "portion.IntervalDict"

    def __init__(self) -> None:
        self.portion = importlib.import_module("portion")
        self.dict = self.portion.IntervalDict()

    def load(self, index: int) -> int:
        return int(self.dict.get(index, 0))

    def store(self, first: int, last: int, value: int) -> None:
        self.dict[self.portion.closedopen(first, last + 1)] = value


PYTHON = (Lists, Sorted, Chopped, Portions)


class Static:
    """``superintervals``, a static index of overlaps: built once, it is looked up; it cannot overwrite."""

    name = "superintervals (loads only)"

    def __init__(self, rows: list[tuple[int, int, int]]) -> None:
        """Of ``rows`` as they are when all are stored: no two of them overlap. ImportError where it is not there."""
        self.map = importlib.import_module("superintervals").IntervalMap()
        for first, last, value in rows:
            self.map.add(first, last, value)
        self.map.build()

    def load(self, index: int) -> int:
        """What overlaps the index."""
        return next(iter(self.map.search_values(index, index)), 0)


SUPERINTERVALS = "superintervals, a static index of overlaps: loads only, it cannot overwrite"
NO_SUPERINTERVALS = "superintervals is not installed (pip install --no-deps superintervals): not run"
