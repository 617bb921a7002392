"""Replace a table by a block as far as FEAT_BBM lets hardware take it: break-before-make, by way of nT, or at once.

Level 0: the locked entry between (``entry``). Level 1: a block with nT, which hardware does not cache, stands in until
the invalidation is over; no address is without translation meanwhile. Level 2: the block at once; a vCPU that has old
and new at a time takes a conflict abort and flushes. Address, attributes and rights are the same in old and new.
Source: Arm DDI 0487, D8 "Using break-before-make"; proposed for KVM by Yanan Wang, 2020, and Ricardo Koller, 2022.
"""

from __future__ import annotations

from ..atomics import compare_exchange, store_release
from ..compiled import U64, Own, Words, compiled, const
from .entry import break_entry, level_shift, make_entry
from .invalidate import invalidate_range
from .layout import ADDRESS, BBM_1, BBM_2, BLOCK_KIND, ENTRY, FLAGS, LEVEL, OLD, SHARED, TABLE_MASK

__all__ = ["NT", "replace_table"]

_ONE = const(1)
NT = const(1 << 16)
"""Bit of a block: hardware does not cache it (Arm, FEAT_BBM level 1 or 2)."""


@compiled
def replace_table(shape: Own, pool: Words, pages: Words, mmu: Words, desk: Own, block: U64) -> bool:
    """Put ``block`` in place of the visited table, and invalidate it; False if another walker was faster.

    By the walk's flags: BBM_2, BBM_1 (if blocks are so large that nT is no bit of their address) or neither.
    References stay: one entry before and after.
    """
    flags = desk[FLAGS]
    shift = level_shift(shape, desk[LEVEL])
    if flags & BBM_2 == 0 and (flags & BBM_1 == 0 or _ONE << shift <= NT):
        if not break_entry(shape, pool, pages, mmu, desk):
            return False
        make_entry(shape, pool, pages, mmu, desk, block)
        return True
    entry = desk[ENTRY]
    first = block if flags & BBM_2 != 0 else block | NT
    if flags & SHARED != 0:
        if compare_exchange(pool, entry, desk[OLD], first) != desk[OLD]:
            return False
    else:
        store_release(pool, entry, first)
    invalidate_range(mmu, desk[ADDRESS] >> shift << shift, _ONE << shift)
    while first != block:
        seen = compare_exchange(pool, entry, first, first & ~NT)
        if seen == first or seen & NT == 0 or seen & shape[TABLE_MASK] != shape[BLOCK_KIND]:
            break
        first = seen  # another walker gave the block rights or a flag
    return True
