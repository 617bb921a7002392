"""What a store does to nodes: entries moved within one, one node made of parts of two, many distributed anew."""

from __future__ import annotations

from ..atomics import load_relaxed, store_relaxed, store_release
from ..compiled import ONE, U64, Own, Words, compiled, u64
from .layout import FANOUT, HEIGHT_BITS, NEW_COUNT, NEW_KEYS, NEW_VALUES, ROOT, SCRATCH, WIDTH
from .lookup import node_count
from .nodes import end_node, give_node, take_node

__all__: list[str] = []


@compiled
def copy_words(ranges: Words, source: U64, target: U64, count: U64) -> None:
    """Copy words upwards; the two may overlap if ``target`` is below ``source``."""
    done = u64(0)
    while done < count:
        store_relaxed(ranges, target + done, load_relaxed(ranges, source + done))
        done += ONE


@compiled
def open_room(ranges: Words, first: U64, count: U64, by: U64) -> None:
    """Move ``count`` words from ``first`` on up by ``by``."""
    while count > 0:
        count -= ONE
        store_relaxed(ranges, first + by + count, load_relaxed(ranges, first + count))


@compiled
def put_new(ranges: Words, desk: Own, node: U64, width: U64, index: U64) -> None:
    """Write the level's new entries into ``node`` from ``index`` on."""
    entry = u64(0)
    while entry < desk[NEW_COUNT]:
        store_relaxed(ranges, node + index + entry, desk[NEW_KEYS + entry])
        store_relaxed(ranges, node + width + index + entry, desk[NEW_VALUES + entry])
        entry += ONE


@compiled
def edit_node(ranges: Words, desk: Own, node: U64, first: U64, end: U64) -> None:
    """In place: entries [first, end) of ``node`` become the new ones, for which there is room."""
    width = load_relaxed(ranges, WIDTH)
    count = node_count(ranges, node, width)
    to = first + desk[NEW_COUNT]
    if to > end:
        open_room(ranges, node + end, count - end, to - end)
        open_room(ranges, node + width + end, count - end, to - end)
    elif to < end:
        copy_words(ranges, node + end, node + to, count - end)
        copy_words(ranges, node + width + end, node + width + to, count - end)
    put_new(ranges, desk, node, width, first)
    end_node(ranges, node, to + count - end, max(count, to + count - end))


@compiled
def one_node(ranges: Words, desk: Own, left: U64, first: U64, right: U64, end: U64) -> None:
    """A new node of ``left``'s entries before ``first``, the new ones, ``right``'s from ``end`` on: they fit."""
    width = load_relaxed(ranges, WIDTH)
    rest = node_count(ranges, right, width) - end
    node = take_node(ranges, desk)
    copy_words(ranges, left, node, first)
    copy_words(ranges, left + width, node + width, first)
    put_new(ranges, desk, node, width, first)
    to = first + desk[NEW_COUNT]
    copy_words(ranges, right + end, node + to, rest)
    copy_words(ranges, right + width + end, node + width + to, rest)
    end_node(ranges, node, to + rest, width)
    desk[NEW_COUNT] = ONE
    desk[NEW_KEYS] = load_relaxed(ranges, node)
    desk[NEW_VALUES] = node


@compiled
def gather(ranges: Words, desk: Own, node: U64, first: U64, end: U64, at: U64) -> U64:
    """Append entries [first, end) of ``node`` to the scratch's ``at``; returns how many it holds now."""
    width = load_relaxed(ranges, WIDTH)
    values = SCRATCH + u64(3) * width
    while first < end:
        desk[SCRATCH + at] = load_relaxed(ranges, node + first)
        desk[values + at] = load_relaxed(ranges, node + width + first)
        at += ONE
        first += ONE
    return at


@compiled
def distribute(ranges: Words, desk: Own, total: U64, packed: bool) -> None:
    """Write ``total`` entries of the scratch into as few new nodes as hold them; these are the new entries above.

    Evenly; ``packed``: full ones first, as when entries come in ascending order and the last node goes on growing.
    """
    width = load_relaxed(ranges, WIDTH)
    values = SCRATCH + u64(3) * width
    fanout = desk[FANOUT]
    nodes = (total + fanout - ONE) // fanout
    number = u64(0)
    at = u64(0)
    while number < nodes:
        left = nodes - number
        size = (total - at + left - ONE) // left
        if packed and number + ONE < nodes:
            size = fanout
        node = take_node(ranges, desk)
        desk[NEW_KEYS + number] = desk[SCRATCH + at]
        desk[NEW_VALUES + number] = node
        entry = u64(0)
        while entry < size:
            store_relaxed(ranges, node + entry, desk[SCRATCH + at])
            store_relaxed(ranges, node + width + entry, desk[values + at])
            entry += ONE
            at += ONE
        end_node(ranges, node, size, width)
        number += ONE
    desk[NEW_COUNT] = nodes


@compiled
def new_root(ranges: Words, desk: Own, height: U64, shared: bool) -> None:
    """The top level's new nodes become a tree; it is published by one store.

    Release: a reader that acquires the root sees every node below it whole.
    """
    node = desk[NEW_VALUES]
    width = load_relaxed(ranges, WIDTH)
    if desk[NEW_COUNT] > 1:
        node = take_node(ranges, desk)
        put_new(ranges, desk, node, width, u64(0))
        end_node(ranges, node, desk[NEW_COUNT], width)
        height += ONE
    while height > 0 and node_count(ranges, node, width) == 1:
        child = load_relaxed(ranges, node + width)
        give_node(ranges, desk, node, shared)
        node = child
        height -= ONE
    store_release(ranges, ROOT, node << HEIGHT_BITS | height)
