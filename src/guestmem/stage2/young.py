"""The access flag: set by the vCPU that faults for it, tested and cleared by the host's aging.

Idea: ``kvm_pgtable_stage2_mkyoung()`` and ``kvm_pgtable_stage2_test_clear_young()``, Linux
``arch/arm64/kvm/hyp/pgtable.c``.
"""

from __future__ import annotations

from ..compiled import ONE, U64, compiled, u64
from .entry import change_entry
from .layout import ACCESSED, EAGAIN, END, LEAF, OK, OLD, PAGE_SHIFT, PROGRESS, RESULT, SHARED, VALID
from .walk import DONE, walk_begin, walk_leave, walk_step
from .words import Table

__all__ = ["mark_young", "young_range"]


@compiled(nogil=True)
def mark_young(table: Table, ipa: U64, flags: U64) -> U64:
    """Set the access flag of the leaf for ``ipa``; OK, EAGAIN (no leaf, or another walker was faster), EINVAL, ERANGE.

    Needs no invalidation: a leaf without the flag is never cached. ``flags``: SHARED. Shared: yes, with the lock held
    for reading. O(levels).
    """
    shape, desk = table.shape, table.desk
    page = ONE << shape[PAGE_SHIFT]
    status = walk_begin(table, ipa & ~(page - ONE), page, (flags & SHARED) | LEAF)
    if status != OK:
        return status
    status = EAGAIN
    if walk_step(table) == LEAF and desk[OLD] & shape[VALID] != 0:
        young = desk[OLD] & shape[ACCESSED] != 0
        if young or change_entry(table, shape[ACCESSED], shape[ACCESSED]):
            status = u64(OK)
    walk_leave(table)
    return status


@compiled(nogil=True)
def young_range(table: Table, ipa: U64, size: U64, clear: bool) -> U64:
    """Count, in desk[RESULT], the leaves with access flag that ``[ipa, ipa + size)`` touches; OK, EINVAL or ERANGE.

    ``clear``: and clear it. Looks at every leaf of the range, not only the first. Invalidates nothing: the caller does
    if it cleared any. Exclusive. O(entries in the range's tables).
    """
    shape, desk = table.shape, table.desk
    status = walk_begin(table, ipa, size, LEAF)
    if status != OK:
        return status
    while True:
        if walk_step(table) == DONE:
            break
        if desk[OLD] & shape[VALID] != 0 and desk[OLD] & shape[ACCESSED] != 0:
            desk[RESULT] += ONE
            if clear:
                change_entry(table, shape[ACCESSED], u64(0))
    desk[PROGRESS] = desk[END]
    return OK
