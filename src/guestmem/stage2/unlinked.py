"""Trees that nothing points to: built in private before a block is split, freed after a table was taken away.

Idea: ``kvm_pgtable_stage2_create_unlinked()`` and ``kvm_pgtable_stage2_free_unlinked()``, Linux
``arch/arm64/kvm/hyp/pgtable.c``.
"""

from __future__ import annotations

from ..atomics import fetch_add, load_acquire, load_relaxed, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .entry import is_counted, is_table, leaf_descriptor, level_shift, set_table_state, table_descriptor, table_page
from .free_list import cache_take, page_give
from .layout import (
    CACHE_COUNT,
    COUNT,
    ENTRY_LEVEL,
    HELD,
    LAST_LEVEL,
    LOCKED,
    MIN_BLOCK_LEVEL,
    NEXT,
    PAGE_SHIFT,
    PAGES,
    STRIDE,
    TREE,
    UNSOUND,
)
from .words import Table

__all__ = ["add_flags", "create_unlinked", "free_unlinked", "leaf_level", "tree_pages"]

_THREE = const(3)


@compiled
def leaf_level(shape: Own, level: U64, block_level: U64) -> U64:
    """The first level from ``level`` on at which a leaf may stand, if none may above ``block_level``."""
    last = shape[LAST_LEVEL]
    while level < last and (level < block_level or level < shape[MIN_BLOCK_LEVEL]):
        level += ONE
    return level


@compiled
def tree_pages(shape: Own, level: U64, target: U64) -> U64:
    """Table pages of a full tree below an entry at ``level`` with its leaves at level ``target``."""
    count = u64(0)
    width = ONE
    while level < target:
        count += width
        width <<= shape[STRIDE]
        level += ONE
    return count


@compiled
def create_unlinked(table: Table, address: U64, level: U64, attributes: U64, block_level: U64) -> U64:
    """Build a tree for an entry at ``level`` that maps its whole size to ``address``: page number + 1 of its root.

    Its leaves are as large as ``block_level`` (the lowest level number at which one may stand) allows, but below
    ``level``. 0, and nothing happened, if the desk's cache has fewer pages than it needs. O(entries written).
    """
    shape, pool, pages, _mmu, desk = table
    target = leaf_level(shape, level + ONE, block_level)
    if desk[CACHE_COUNT] < tree_pages(shape, level, target):
        return u64(0)
    stride = shape[STRIDE]
    to_words = shape[PAGE_SHIFT] - _THREE
    in_table = (ONE << stride) - ONE
    full = ONE + (ONE << stride)
    granule = ONE << level_shift(shape, target)
    tables = ONE << (stride * (target - level - ONE))
    number = u64(0)
    while number < tables:
        # A new table at each level at which this leaf table is the first below.
        at = level + ONE
        while at <= target:
            below = stride * (target - at)
            if number & ((ONE << below) - ONE) == 0:
                page = cache_take(desk) - ONE
                set_table_state(pages, page, at - ONE, full)
                desk[TREE + at] = page
                if at > level + ONE:
                    entry = (desk[TREE + at - ONE] << to_words) + ((number >> below) & in_table)
                    store_relaxed(pool, entry, table_descriptor(shape, page))
            at += ONE
        word = desk[TREE + target] << to_words
        end = word + in_table + ONE
        while word < end:
            store_relaxed(pool, word, leaf_descriptor(shape, target, address, attributes))
            address += granule
            word += ONE
        number += ONE
    return desk[TREE + level + ONE] + ONE


@compiled
def add_flags(shape: Own, pool: Words, page: U64, level: U64, flags: U64) -> None:
    """Set ``flags`` in every leaf of the tree under ``page``, a table of entries at ``level``.

    Nothing points there yet. Looks two tables deep: there is no block above level 1. O(leaves), O(1) without flags.
    """
    if flags == 0:
        return
    to_words = shape[PAGE_SHIFT] - _THREE
    entries = ONE << shape[STRIDE]
    entry = page << to_words
    end = entry + entries
    while entry < end:
        descriptor = load_relaxed(pool, entry)
        if is_table(shape, descriptor, level):
            inner = table_page(shape, descriptor) << to_words
            inner_end = inner + entries
            while inner < inner_end:
                store_relaxed(pool, inner, load_relaxed(pool, inner) | flags)
                inner += ONE
        elif descriptor != 0:
            store_relaxed(pool, entry, descriptor | flags)
        entry += ONE


@compiled
def free_unlinked(shape: Own, pool: Words, pages: Words, mmu: Words, root: U64) -> U64:
    """Free the tree under table page ``root``, by its contents now; returns the number of pages.

    Nothing reaches it any more: it was never linked, or a grace period is over, or the caller is exclusive. A LOCKED
    entry or a count that does not fit is counted in UNSOUND. O(pages * entries).
    """
    freed = u64(0)
    chain = root + ONE
    store_relaxed(pages, PAGES + (root << 3) + NEXT, u64(0))
    while chain != 0:
        page = chain - ONE
        line = PAGES + (page << 3)
        chain = load_relaxed(pages, line + NEXT)
        level = load_relaxed(pages, line + ENTRY_LEVEL) + ONE
        references = ONE
        entry = page << (shape[PAGE_SHIFT] - _THREE)
        end = entry + (ONE << shape[STRIDE])
        while entry < end:
            descriptor = load_acquire(pool, entry)
            if is_counted(shape, descriptor):
                references += ONE
                if is_table(shape, descriptor, level):
                    child = table_page(shape, descriptor)
                    store_relaxed(pages, PAGES + (child << 3) + NEXT, chain)
                    chain = child + ONE
            elif descriptor == shape[LOCKED]:
                fetch_add(mmu, UNSOUND, ONE)
            entry += ONE
        if load_relaxed(pages, line + COUNT) != references:
            fetch_add(mmu, UNSOUND, ONE)
        store_relaxed(pages, line + HELD, u64(0))
        if not page_give(pages, page):
            fetch_add(mmu, UNSOUND, ONE)
        freed += ONE
    return freed
