"""Clean data caches for what a range maps: a hook that counts, since memory is coherent here.

Idea: ``kvm_pgtable_stage2_flush()``, Linux ``arch/arm64/kvm/hyp/pgtable.c``, which has work to do where the machine has
no FWB.
"""

from __future__ import annotations

from ..atomics import fetch_add
from ..compiled import ONE, U64, Words, compiled
from .entry import level_shift
from .layout import CLEANED, CLEANS, END, LEAF, LEVEL, OK, OLD, PROGRESS, RESULT, VALID
from .walk import DONE, walk_begin, walk_step
from .words import Table

__all__ = ["clean_data", "flush_range"]


@compiled
def clean_data(mmu: Words, size: U64) -> None:
    """Called for each leaf, with its size in bytes."""
    fetch_add(mmu, CLEANS, ONE)
    fetch_add(mmu, CLEANED, size)


@compiled(nogil=True)
def flush_range(table: Table, ipa: U64, size: U64) -> U64:
    """Clean data for every leaf that ``[ipa, ipa + size)`` touches; OK, EINVAL or ERANGE. desk[RESULT]: leaves.

    Exclusive, as in Linux. O(entries in the range's tables).
    """
    shape, _pool, _pages, mmu, desk = table
    status = walk_begin(table, ipa, size, LEAF)
    if status != OK:
        return status
    while True:
        if walk_step(table) == DONE:
            break
        if desk[OLD] & shape[VALID] != 0:
            clean_data(mmu, ONE << level_shift(shape, desk[LEVEL]))
            desk[RESULT] += ONE
    desk[PROGRESS] = desk[END]
    return OK
