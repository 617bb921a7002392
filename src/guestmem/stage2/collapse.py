"""Collapse tables into blocks where they map one run of memory with the same attributes.

What mainline leaves to the next fault (``map`` meets a table where a block fits) done eagerly; x86 does it when
dirty logging ends (``kvm_mmu_recover_huge_pages()``, Linux ``arch/x86/kvm/mmu/tdp_mmu.c``). With break-before-make, or
less of it: see ``bbm``.
"""

from __future__ import annotations

from ..atomics import load_acquire
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .bbm import replace_table
from .discipline import may_unlink, unlink_table
from .entry import is_table, leaf_descriptor, level_shift, output_address, table_page
from .layout import (
    ACCESSED,
    ADDRESS,
    ATTRIBUTES_MASK,
    BBM_1,
    BBM_2,
    DIRTY,
    EAGAIN,
    END,
    ENTRY,
    HOLDS,
    LAST_LEVEL,
    LEVEL,
    MIN_BLOCK_LEVEL,
    OK,
    OLD,
    PAGE_SHIFT,
    PERMISSION_MASK,
    PROGRESS,
    RESULT,
    SHARED,
    STRIDE,
    TABLE_POST,
    TABLE_PRE,
    VALID,
)
from .refs import hold_child, release_page
from .walk import DONE, LOST, walk_begin, walk_leave, walk_past, walk_step
from .words import Table

__all__ = ["collapse_range"]

_THREE = const(3)


@compiled(nogil=True)
def collapse_range(table: Table, ipa: U64, size: U64, block_level: U64, flags: U64) -> U64:
    """Collapse tables that lie in ``[ipa, ipa + size)`` into blocks as large as ``block_level`` and the format allow.

    A table is collapsed if all its entries are leaves, map one aligned run, and differ in access and dirty flags only;
    the block gets a flag that any of them has. ``flags``: SHARED, and BBM_1 or BBM_2. OK; EAGAIN: another walker was
    faster; ENOMEM: the queue of deferred pages is full: reclaim, go on at desk[PROGRESS]; EBUSY: discipline rwlock does
    this exclusively; EINVAL, ERANGE. desk[RESULT]: tables collapsed.

    Shared: yes, with the lock held for reading. A flag or right that another walker adds to an entry between the look
    and the break is lost, and comes back with the next fault. O(entries in the range's tables).
    """
    shape, pool, pages, mmu, desk = table
    status = walk_begin(table, ipa, size, (flags & (SHARED | BBM_1 | BBM_2)) | TABLE_PRE | TABLE_POST)
    if status != OK:
        return status
    end = ipa + size
    while True:
        visit = walk_step(table)
        if visit == DONE:
            desk[PROGRESS] = desk[END]
            break
        if visit == LOST:
            desk[PROGRESS] = desk[ADDRESS]
            status = EAGAIN
            break
        level = desk[LEVEL]
        # Tables of pages are looked at on the way down, and not walked; those above when the ones below are done.
        pages_below = level + ONE == shape[LAST_LEVEL]
        if (visit == TABLE_PRE) != pages_below:
            continue
        shift = level_shift(shape, level)
        start = desk[ADDRESS] if visit == TABLE_PRE else desk[ADDRESS] - ONE
        start = start >> shift << shift
        if pages_below:
            walk_past(desk)
        if level < block_level or level < shape[MIN_BLOCK_LEVEL] or start < ipa or end - start < ONE << shift:
            continue
        old = desk[OLD]
        if not is_table(shape, old, level):
            continue
        desk[PROGRESS] = start
        hold = desk[HOLDS] != 0
        if hold and not hold_child(shape, pool, pages, mmu, desk[ENTRY], old):
            status = EAGAIN
            break
        block = _block_of(shape, pool, old, level)
        if hold:
            release_page(shape, pool, pages, mmu, table_page(shape, old))
        if block == 0:
            continue
        status = may_unlink(table)
        if status == OK:
            desk[ADDRESS] = start
            if replace_table(table, block):
                unlink_table(table, table_page(shape, old))
                desk[RESULT] += ONE
            else:
                status = EAGAIN
            if visit == TABLE_POST:
                desk[ADDRESS] = start + (ONE << shift)
        if status != OK:
            break
    walk_leave(table)
    return status


@compiled
def _block_of(shape: Own, pool: Words, descriptor: U64, level: U64) -> U64:
    """The block at ``level`` that can stand for the table that ``descriptor`` points to; 0 if none can."""
    below = level + ONE
    entry = table_page(shape, descriptor) << (shape[PAGE_SHIFT] - _THREE)
    end = entry + (ONE << shape[STRIDE])
    first = load_acquire(pool, entry)
    if first & shape[VALID] == 0 or is_table(shape, first, below):
        return u64(0)
    loose = shape[ACCESSED] | (shape[DIRTY] & ~shape[PERMISSION_MASK])
    address = output_address(shape, first)
    if address & ((ONE << level_shift(shape, level)) - ONE) != 0:
        return u64(0)
    attributes = first & shape[ATTRIBUTES_MASK] & ~loose
    granule = ONE << level_shift(shape, below)
    flags = u64(0)
    output = address
    while entry < end:
        word = load_acquire(pool, entry)
        if word & ~loose != leaf_descriptor(shape, below, output, attributes):
            return u64(0)
        flags |= word & loose
        output += granule
        entry += ONE
    return leaf_descriptor(shape, level, address, attributes | flags)
