"""Blocks that reach beyond a range: split first, so that what is done to the range changes nothing outside it.

Linux does not: on arm64 an unmap takes whole blocks, a map or annotate that breaks one loses the rest, and zaps on x86
take whole leaves; all that faults in again. Who has no fault that would bring it back needs this: a table of a device,
or pKVM's host (Android prefaults since 2024). All table pages are there before the first change.
"""

from __future__ import annotations

from ..atomics import store_relaxed
from ..compiled import ONE, U64, Words, compiled, const, u64
from .entry import break_entry, level_shift, make_entry, output_address, table_descriptor
from .free_list import cache_put
from .layout import (
    ADDRESS,
    ATTRIBUTES_MASK,
    CACHE_COUNT,
    CACHED,
    COUNT,
    EAGAIN,
    END,
    ENOMEM,
    FIND,
    HELD,
    LAST_LEVEL,
    LEVEL,
    OK,
    OLD,
    PAGE_SHIFT,
    PAGES,
    RESULT,
    STATE,
    STRIDE,
)
from .split import split_range
from .unlinked import add_flags, create_unlinked
from .walk import lookup, walk_begin
from .words import Table

__all__ = ["put_rest", "split_edges"]

_THREE = const(3)


@compiled
def _leaf_level(table: Table, address: U64) -> U64:
    """Level of the leaf for ``address``; the last one if there is none."""
    shape, desk = table.shape, table.desk
    if lookup(table, address) != OK:
        return shape[LAST_LEVEL]
    return desk[FIND + ONE]


@compiled
def _pages_needed(table: Table, ipa: U64, end: U64) -> U64:
    """Table pages that the splits at both ends take: one for each entry that a bound cuts, from its block down."""
    shape = table.shape
    low = _leaf_level(table, ipa)
    high = _leaf_level(table, end)
    needed = u64(0)
    level = low if low < high else high
    while level < shape[LAST_LEVEL]:
        shift = level_shift(shape, level)
        inside = (ONE << shift) - ONE
        at_low = level >= low and ipa & inside != 0
        if at_low:
            needed += ONE
        if level >= high and end & inside != 0 and not (at_low and ipa >> shift == end >> shift):
            needed += ONE
        level += ONE
    return needed


@compiled(nogil=True)
def split_edges(table: Table, ipa: U64, size: U64) -> U64:
    """Split what reaches over either bound of ``[ipa, ipa + size)``, one level at a time, as far as the bound asks.

    OK: every leaf now lies inside or outside. ENOMEM: the desk's cache holds fewer than desk[RESULT] pages, and nothing
    has changed. EINVAL or ERANGE: a bad range. Exclusive. O(levels * entries of a table).
    """
    shape, desk = table.shape, table.desk
    status = walk_begin(table, ipa, size, u64(0))
    if status != OK:
        return status
    needed = _pages_needed(table, ipa, ipa + size)
    if desk[CACHE_COUNT] < needed:
        desk[RESULT] = needed
        return ENOMEM
    page = ONE << shape[PAGE_SHIFT]
    at = ipa
    while True:
        level = _leaf_level(table, at)
        if level < shape[LAST_LEVEL] and at & ((ONE << level_shift(shape, level)) - ONE) != 0:
            status = split_range(table, at, page, level + ONE, ONE)
            if status != OK:
                return status
        elif at == ipa:
            at = ipa + size
        else:
            return OK


@compiled
def put_rest(table: Table) -> U64:
    """For map: put a table in place of the visited block, full but for what the walk is about to map.

    OK; ENOMEM; EAGAIN: another walker was faster. Shared: yes. O(entries of a table).
    """
    shape, pool, pages, _mmu, desk = table
    old = desk[OLD]
    level = desk[LEVEL]
    below = level + ONE
    shift = level_shift(shape, level)
    start = desk[ADDRESS] >> shift << shift
    attributes = old & shape[ATTRIBUTES_MASK]
    tree = create_unlinked(table, output_address(shape, old), level, attributes, below)
    if tree == 0:
        return ENOMEM
    page = tree - ONE
    line = PAGES + (page << 3)
    small = level_shift(shape, below)
    first = (desk[ADDRESS] - start + (ONE << small) - ONE) >> small
    last = ONE << shape[STRIDE]
    if desk[END] - start < ONE << shift:
        last = (desk[END] - start) >> small
    entry = page << (shape[PAGE_SHIFT] - _THREE)
    if first < last:
        _clear(pool, entry + first, entry + last)
        store_relaxed(pages, line + COUNT, ONE + (ONE << shape[STRIDE]) - (last - first))
    if not break_entry(table):
        _clear(pool, entry, entry + (ONE << shape[STRIDE]))
        store_relaxed(pages, line + HELD, u64(0))
        store_relaxed(pages, line + COUNT, u64(0))
        store_relaxed(pages, line + STATE, CACHED)
        cache_put(desk, page)
        return EAGAIN
    add_flags(shape, pool, page, below, desk[OLD] & ~old)
    make_entry(table, table_descriptor(shape, page))
    return OK


@compiled(inline=True)
def _clear(pool: Words, entry: U64, end: U64) -> None:
    """Empty entries of a table that nobody sees yet."""
    while entry < end:
        store_relaxed(pool, entry, u64(0))
        entry += ONE
