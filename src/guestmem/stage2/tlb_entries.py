"""The entries of one vCPU's TLB: found by place and tag, filled in place of what was there, forgotten."""

from __future__ import annotations

from ..compiled import ONE, U64, Own, compiled, const, u64
from .entry import level_shift
from .layout import LAST_LEVEL, MIN_BLOCK_LEVEL, START_LEVEL
from .tlb_layout import (
    BY_ADDRESS,
    BY_ADDRESS_SEEN,
    BY_BYTES,
    BY_BYTES_SEEN,
    COMBINED,
    COMBINED_BASE,
    COMBINED_MASK,
    COMBINED_SEEN,
    DROPPED,
    ENTRY_ABOUT,
    ENTRY_SEEN,
    ENTRY_TARGET,
    ENTRY_WORDS,
    EVERYTHING_SEEN,
    KIND,
    LEAF_BASE,
    LEAF_MASK,
    NO_HINT,
    SEEN,
    WALK_BASE,
    WALK_MASK,
)

__all__ = ["fill", "forget", "forget_all", "leaf_place", "tag_of", "walk_place"]

_THREE = const(3)


@compiled(inline=True)
def tag_of(shape: Own, ipa: U64, level: U64) -> U64:
    """Tag of a leaf or table that an entry at ``level`` stands for; never 0."""
    return ((ipa >> level_shift(shape, level)) << 2 | level) + ONE


@compiled(inline=True)
def leaf_place(shape: Own, tlb: Own, ipa: U64, level: U64) -> U64:
    """Word of the only entry in which a leaf at ``level`` can be."""
    return tlb[LEAF_BASE] + ENTRY_WORDS * (((ipa >> level_shift(shape, level)) + level) & tlb[LEAF_MASK])


@compiled(inline=True)
def walk_place(shape: Own, tlb: Own, ipa: U64, level: U64) -> U64:
    """Word of the only entry in which the table below an entry at ``level`` can be."""
    return tlb[WALK_BASE] + ENTRY_WORDS * (((ipa >> level_shift(shape, level)) + level) & tlb[WALK_MASK])


@compiled(inline=True)
def fill(tlb: Own, place: U64, tag: U64, target: U64, about: U64) -> None:
    """Fill an entry; it is as old as the log that this vCPU has applied."""
    tlb[place] = tag
    tlb[place + ENTRY_TARGET] = target
    tlb[place + ENTRY_ABOUT] = about
    tlb[place + ENTRY_SEEN] = tlb[SEEN]


@compiled
def _clear(tlb: Own, first: U64, mask: U64) -> None:
    """Forget all of one cache."""
    place = first
    end = first + ENTRY_WORDS * (mask + ONE)
    while place < end:
        if tlb[place] != 0:
            tlb[place] = u64(0)
            tlb[DROPPED] += ONE
        place += ENTRY_WORDS


@compiled
def forget_all(tlb: Own) -> None:
    """Forget everything. O(entries)."""
    _clear(tlb, tlb[COMBINED_BASE], tlb[COMBINED_MASK])
    _clear(tlb, tlb[LEAF_BASE], tlb[LEAF_MASK])
    _clear(tlb, tlb[WALK_BASE], tlb[WALK_MASK])


@compiled
def _drop(tlb: Own, place: U64, tag: U64) -> None:
    """Forget an entry, if it has this tag."""
    if tlb[place] == tag:
        tlb[place] = u64(0)
        tlb[DROPPED] += ONE


@compiled
def _forget_address(shape: Own, tlb: Own, ipa: U64, hint: U64) -> None:
    """Forget the leaf for ``ipa`` at level ``hint``; with no hint, at every level, and the tables on the way."""
    last = shape[LAST_LEVEL]
    if hint < NO_HINT:
        if hint <= last:
            _drop(tlb, leaf_place(shape, tlb, ipa, hint), tag_of(shape, ipa, hint))
        return
    level = shape[START_LEVEL]
    while level <= last:
        tag = tag_of(shape, ipa, level)
        if level >= shape[MIN_BLOCK_LEVEL]:
            _drop(tlb, leaf_place(shape, tlb, ipa, level), tag)
        if level < last:
            _drop(tlb, walk_place(shape, tlb, ipa, level), tag)
        level += ONE


@compiled
def _forget_bytes(shape: Own, tlb: Own, first: U64, mask: U64, start: U64, end: U64) -> None:
    """Forget the leaves, or tables, of one cache that lie partly in ``[start, end)``. O(entries)."""
    place = first
    stop = first + ENTRY_WORDS * (mask + ONE)
    while place < stop:
        if tlb[place] != 0:
            tag = tlb[place] - ONE
            shift = level_shift(shape, tag & _THREE)
            low = tag >> 2 << shift
            if low < end and low + (ONE << shift) > start:
                tlb[place] = u64(0)
                tlb[DROPPED] += ONE
        place += ENTRY_WORDS


@compiled
def forget(shape: Own, tlb: Own, what: U64, start: U64, end: U64) -> None:
    """Carry out one record of the log. O(entries), by address O(levels)."""
    kind = what & KIND
    if kind == BY_ADDRESS:
        tlb[BY_ADDRESS_SEEN] += ONE
        _forget_address(shape, tlb, start, what >> 8)
    elif kind == BY_BYTES:
        tlb[BY_BYTES_SEEN] += ONE
        _forget_bytes(shape, tlb, tlb[LEAF_BASE], tlb[LEAF_MASK], start, end)
        _forget_bytes(shape, tlb, tlb[WALK_BASE], tlb[WALK_MASK], start, end)
    elif kind == COMBINED:
        tlb[COMBINED_SEEN] += ONE
        _clear(tlb, tlb[COMBINED_BASE], tlb[COMBINED_MASK])
    else:
        tlb[EVERYTHING_SEEN] += ONE
        forget_all(tlb)
