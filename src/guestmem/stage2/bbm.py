"""Replace a table by a block, or a block by a table, as far as FEAT_BBM lets hardware take it.

Level 0: break-before-make, the locked entry between (``entry``). Level 1: a block with nT, which hardware does not
cache, stands in until the invalidation is over; no address is without translation meanwhile. Level 2: the new entry at
once; a vCPU that has old and new at a time takes a conflict abort and flushes. Address, attributes and rights are the
same in old and new. Source: Arm DDI 0487, D8 "Using break-before-make"; proposed for KVM by Yanan Wang, 2020, and
Ricardo Koller, 2022.
"""

from __future__ import annotations

from ..atomics import compare_exchange, fetch_add, load_relaxed, store_release
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .entry import break_entry, is_table, level_shift, make_entry, table_descriptor, table_page
from .invalidate import invalidate_ipa, invalidate_range
from .layout import (
    ACCESSED,
    ADDRESS,
    BBM_1,
    BBM_2,
    BLOCK_KIND,
    DIRTY,
    ENTRY,
    FLAGS,
    LEVEL,
    MODIFIER,
    NT,
    OLD,
    PAGE_SHIFT,
    PERMISSION_MASK,
    REPLACED_BY_BREAK,
    REPLACED_BY_NT,
    REPLACED_DIRECTLY,
    SHARED,
    STRIDE,
    TABLE_MASK,
    TLB_BASE,
    VALID,
)
from .unlinked import add_flags
from .words import Table

__all__ = ["replace_block", "replace_table"]

_THREE = const(3)


@compiled
def _in_place(shape: Own, flags: U64, shift: U64) -> bool:
    """Whether a walk's flags allow more than break-before-make for blocks of ``1 << shift`` bytes.

    nT must be no bit of their address, and x86 has none: there level 1 is break-before-make, and level 2 what KVM does.
    """
    return flags & BBM_2 != 0 or (flags & BBM_1 != 0 and shape[NT] != 0 and shape[NT] < ONE << shift)


@compiled
def replace_table(table: Table, block: U64) -> bool:
    """Put ``block`` in place of the visited table, and invalidate it; False if another walker was faster.

    By the walk's flags: BBM_2, BBM_1 (if blocks are so large that nT is no bit of their address) or neither. The block
    gets what hardware set in the table's leaves until it could reach them no more. References stay: one entry before
    and after.
    """
    shape, pool, _pages, mmu, desk = table
    flags = desk[FLAGS]
    old = desk[OLD]
    shift = level_shift(shape, desk[LEVEL])
    if not _in_place(shape, flags, shift):
        if not break_entry(table):
            return False
        make_entry(table, block | _late_flags(table, old, block))
        fetch_add(mmu, REPLACED_BY_BREAK, ONE)
        return True
    entry = desk[ENTRY]
    first = block if flags & BBM_2 != 0 else block | shape[NT]
    if flags & SHARED != 0:
        if compare_exchange(pool, entry, old, first) != old:
            return False
    else:
        store_release(pool, entry, first)
    invalidate_range(mmu, desk[ADDRESS] >> shift << shift, ONE << shift)
    late = _late_flags(table, old, block)
    while first != block | late:
        seen = compare_exchange(pool, entry, first, (first ^ (first ^ block) & shape[NT]) | late)
        if seen == first or seen & shape[TABLE_MASK] != shape[BLOCK_KIND] or (seen ^ first) & shape[NT] != 0:
            break  # done; or broken, and perhaps made again, by another walker
        first = seen  # another walker gave the block rights or a flag
    fetch_add(mmu, REPLACED_DIRECTLY if flags & BBM_2 != 0 else REPLACED_BY_NT, ONE)
    return True


@compiled
def _late_flags(table: Table, unlinked: U64, block: U64) -> U64:
    """What hardware set in the leaves of a table, and ``block`` has not. The table is invalidated, but not freed yet.

    O(1) if hardware can set nothing that the block lacks, else O(entries).
    """
    shape, pool, _pages, mmu, desk = table
    loose = shape[ACCESSED]
    if shape[DIRTY] & shape[PERMISSION_MASK] == 0 or block & shape[MODIFIER] != 0:
        loose |= shape[DIRTY]
    loose &= ~block
    if loose == 0 or load_relaxed(mmu, TLB_BASE) == 0:
        return u64(0)
    entry = table_page(shape, unlinked) << (shape[PAGE_SHIFT] - _THREE)
    end = entry + (ONE << shape[STRIDE])
    below = desk[LEVEL] + ONE
    late = u64(0)
    while entry < end:
        descriptor = load_relaxed(pool, entry)
        if descriptor & shape[VALID] != 0 and not is_table(shape, descriptor, below):
            late |= descriptor
        entry += ONE
    return late & loose


@compiled
def replace_block(table: Table, tree: U64) -> None:
    """Put the table ``tree`` (page number), which maps the same, in place of the visited block. Exclusive.

    By the walk's flags, as ``replace_table``. The tree's leaves get what hardware sets in the block until then.
    """
    shape, pool, _pages, mmu, desk = table
    flags = desk[FLAGS]
    level = desk[LEVEL]
    below = level + ONE
    old = desk[OLD]
    new = table_descriptor(shape, tree)
    if not _in_place(shape, flags, level_shift(shape, level)):
        break_entry(table)
        add_flags(shape, pool, tree, below, desk[OLD] & ~old)
        make_entry(table, new)
        fetch_add(mmu, REPLACED_BY_BREAK, ONE)
        return
    entry = desk[ENTRY]
    if flags & BBM_2 == 0:
        old = _exchange_flagged(shape, pool, entry, old, u64(0), tree, below)
        invalidate_ipa(mmu, desk[ADDRESS], level)
        _exchange_flagged(shape, pool, entry, old | shape[NT], new, tree, below)
        fetch_add(mmu, REPLACED_BY_NT, ONE)
        return
    _exchange_flagged(shape, pool, entry, old, new, tree, below)
    invalidate_ipa(mmu, desk[ADDRESS], level)
    fetch_add(mmu, REPLACED_DIRECTLY, ONE)


@compiled
def _exchange_flagged(shape: Own, pool: Words, entry: U64, old: U64, new: U64, tree: U64, below: U64) -> U64:
    """Exchange a block for ``new`` (0: itself with nT); what hardware set in it since goes to the tree, too.

    Returns what the block was.
    """
    while True:
        seen = compare_exchange(pool, entry, old, new if new != 0 else old | shape[NT])
        if seen == old:
            return old
        add_flags(shape, pool, tree, below, seen & ~old)
        old = seen
