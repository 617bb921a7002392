"""Map a range: the largest leaves that fit, tables where none do, blocks split and tables collapsed on the way.

Shared (many vCPUs, under the lock for reading) or exclusive. As merged in Linux, ``stage2_map_walker()``,
``arch/arm64/kvm/hyp/pgtable.c``: a leaf that is there already, or differs in rights only, is EAGAIN; what a split
block mapped outside the range is gone until it faults; a collapse happens when the walk meets a table where a block
fits. With KEEP_REST it stays.
"""

from __future__ import annotations

from ..compiled import ONE, U64, compiled
from .discipline import may_unlink, unlink_table
from .edges import put_rest
from .entry import (
    break_entry,
    change_entry,
    leaf_descriptor,
    level_shift,
    make_entry,
    set_table_state,
    table_descriptor,
    table_page,
)
from .free_list import cache_put, cache_take
from .layout import (
    ADDRESS,
    ANNOTATE,
    EAGAIN,
    EINVAL,
    END,
    ENOMEM,
    ENTRY,
    EPERM,
    ERANGE,
    FLAGS,
    IGNORE_EAGAIN,
    KEEP_REST,
    LAST_LEVEL,
    LEAF,
    LEVEL,
    MIN_BLOCK_LEVEL,
    OK,
    OLD,
    OUTPUT_END,
    OVER_OWNER,
    PAGE_SHIFT,
    PERMISSION_MASK,
    PROGRESS,
    RESULT,
    SHARED,
    SOFTWARE_MASK,
    TABLE_PRE,
    VALID,
)
from .marks import is_mark, table_holds_mark
from .walk import DONE, LOST, walk_begin, walk_leave, walk_step
from .words import Table

__all__ = ["map_range"]


@compiled(nogil=True)
def map_range(table: Table, ipa: U64, size: U64, address: U64, attributes: U64, block_level: U64, flags: U64) -> U64:
    """Map ``[ipa, ipa + size)`` to ``[address, address + size)``, bytes in whole pages; returns a status word.

    ``attributes``: bits of a leaf beside address and kind. ``block_level``: lowest level number at which a leaf may
    stand (3: pages only, as for a slot with dirty logging). ``flags``: SHARED, IGNORE_EAGAIN, OVER_OWNER,
    KEEP_REST, SKIP_INVALIDATE. Shared: yes, with the lock held for reading.

    OK; EAGAIN: another walker was faster, or it is mapped already; ENOMEM: the desk's cache is empty, or its queue is
    full: refill and reclaim, then go on; EBUSY: a table must go and the discipline lets only exclusive walks do that;
    EPERM: an owner's mark is in the way; EINVAL, ERANGE: bad range. All that lies before desk[PROGRESS] is done;
    desk[RESULT] is the number of leaves written. O(leaves + tables).
    """
    shape, desk = table.shape, table.desk
    page_mask = (ONE << shape[PAGE_SHIFT]) - ONE
    if flags & ANNOTATE == 0:
        if address & page_mask != 0:
            return EINVAL
        if address >= shape[OUTPUT_END] or size > shape[OUTPUT_END] - address:
            return ERANGE
    status = walk_begin(table, ipa, size, flags | LEAF | TABLE_PRE)
    if status != OK:
        return status
    while True:
        visit = walk_step(table)
        if visit == DONE:
            break
        status = EAGAIN if visit == LOST else _map_visit(table, visit, ipa, address, attributes, block_level)
        if status != OK:
            if status != EAGAIN or flags & IGNORE_EAGAIN == 0:
                break
            status = OK
    desk[PROGRESS] = desk[ADDRESS] if desk[ADDRESS] < desk[END] else desk[END]
    walk_leave(table)
    return status


@compiled(inline=True)
def _map_visit(table: Table, visit: U64, ipa: U64, address: U64, attributes: U64, block_level: U64) -> U64:
    """Do what a visit asks for: put a leaf, or a table to descend into; returns a status word."""
    shape, desk = table.shape, table.desk
    level = desk[LEVEL]
    old = desk[OLD]
    flags = desk[FLAGS]
    last = shape[LAST_LEVEL]
    output = address + (desk[ADDRESS] - ipa)  # from where the walk is, never summed up: skipped entries count
    in_granule = (ONE << level_shift(shape, level)) - ONE
    fits = level == last
    if not fits and level >= block_level and level >= shape[MIN_BLOCK_LEVEL]:
        fits = (desk[ADDRESS] | output) & in_granule == 0 and desk[END] - desk[ADDRESS] > in_granule
    if not fits:
        if visit == TABLE_PRE:
            return OK
        return _put_table(table)
    new = attributes
    if flags & ANNOTATE == 0:
        new = leaf_descriptor(shape, level, output, attributes)
    if old & shape[VALID] == 0:
        if is_mark(shape, old) and flags & OVER_OWNER == 0:
            return EPERM
    elif visit == LEAF:
        if new & shape[VALID] != 0 and (old ^ new) & ~shape[PERMISSION_MASK] == 0:
            return EAGAIN
        if flags & SHARED == 0 and (old ^ new) & ~shape[SOFTWARE_MASK] == 0:
            change_entry(table, shape[SOFTWARE_MASK], new & shape[SOFTWARE_MASK])
            desk[RESULT] += ONE
            return OK
    else:
        status = may_unlink(table)
        if status != OK:
            return status
        entry = desk[ENTRY]
        if flags & OVER_OWNER == 0 and table_holds_mark(table, entry, old, level):
            return EPERM
    if not break_entry(table):
        return EAGAIN
    make_entry(table, new)
    desk[RESULT] += ONE
    if visit == TABLE_PRE:
        unlink_table(table, table_page(shape, old))
    return OK


@compiled
def _put_table(table: Table) -> U64:
    """Put an empty table in place of the visited leaf; its page is taken before the break."""
    shape, _pool, pages, _mmu, desk = table
    old = desk[OLD]
    if is_mark(shape, old) and desk[FLAGS] & OVER_OWNER == 0:
        return EPERM
    if old & shape[VALID] != 0 and desk[FLAGS] & KEEP_REST != 0:
        return put_rest(table)
    page = cache_take(desk)
    if page == 0:
        return ENOMEM
    if not break_entry(table):
        cache_put(desk, page - ONE)
        return EAGAIN
    set_table_state(pages, page - ONE, desk[LEVEL], ONE)
    make_entry(table, table_descriptor(shape, page - ONE))
    return OK
