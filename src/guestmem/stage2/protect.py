"""Take away the right to write from a range, or add rights to one page: valid to valid, without break-before-make.

Idea: ``kvm_pgtable_stage2_wrprotect()`` and ``kvm_pgtable_stage2_relax_perms()``, Linux
``arch/arm64/kvm/hyp/pgtable.c``.
"""

from __future__ import annotations

from ..compiled import ONE, TWO, U64, compiled, const, u64
from .entry import change_entry
from .invalidate import invalidate_local
from .layout import (
    EAGAIN,
    END,
    EXECUTE_GRANTED,
    EXECUTE_MASK,
    LEAF,
    LEVEL,
    MODIFIER,
    OK,
    OLD,
    PAGE_SHIFT,
    PROGRESS,
    READ_GRANTED,
    READ_MASK,
    RESULT,
    SHARED,
    VALID,
    WALKER,
    WRITE_DENIED,
    WRITE_GRANTED,
    WRITE_MASK,
)
from .walk import DONE, walk_begin, walk_leave, walk_step
from .words import Table

__all__ = ["relax_permissions", "write_protect_range"]

_FOUR = const(4)


@compiled(nogil=True)
def write_protect_range(table: Table, ipa: U64, size: U64) -> U64:
    """Take the right to write from every leaf that ``[ipa, ipa + size)`` touches; OK, EINVAL or ERANGE.

    The dirty-bit-modifier goes, too, or hardware would give the right back. Invalidates nothing: the caller does, by
    range, before it trusts a dirty bitmap. desk[RESULT]: leaves changed. Exclusive. O(entries in the range's tables).
    """
    shape, desk = table.shape, table.desk
    status = walk_begin(table, ipa, size, LEAF)
    if status != OK:
        return status
    while True:
        if walk_step(table) == DONE:
            break
        old = desk[OLD]
        writable = old & shape[WRITE_MASK] == shape[WRITE_GRANTED] or old & shape[MODIFIER] != 0
        if old & shape[VALID] != 0 and writable:
            change_entry(table, shape[WRITE_MASK] | shape[MODIFIER], shape[WRITE_DENIED])
            desk[RESULT] += ONE
    desk[PROGRESS] = desk[END]
    return OK


@compiled(nogil=True)
def relax_permissions(table: Table, ipa: U64, rights: U64, flags: U64) -> U64:
    """Add ``rights`` (1 read, 2 write, 4 execute) to the leaf for ``ipa``; OK, EAGAIN, EINVAL or ERANGE.

    EAGAIN: no leaf there, or another walker was faster. Either way this vCPU's own translation is invalidated: a
    stale stricter one would only fault again, for ever. Other vCPUs' stale ones just fault once. ``flags``: SHARED.
    Shared: yes, with the lock held for reading. O(levels).
    """
    shape, _pool, _pages, mmu, desk = table
    page = ONE << shape[PAGE_SHIFT]
    status = walk_begin(table, ipa & ~(page - ONE), page, (flags & SHARED) | LEAF)
    if status != OK:
        return status
    status = EAGAIN
    level = _FOUR  # no hint, if the walk loses its way
    if walk_step(table) == LEAF:
        level = desk[LEVEL]
        if desk[OLD] & shape[VALID] != 0:
            mask = u64(0)
            granted = u64(0)
            if rights & ONE != 0:
                mask = shape[READ_MASK]
                granted = shape[READ_GRANTED]
            if rights & TWO != 0:
                mask |= shape[WRITE_MASK]
                granted |= shape[WRITE_GRANTED]
            if rights & _FOUR != 0:
                mask |= shape[EXECUTE_MASK]
                granted |= shape[EXECUTE_GRANTED]
            if change_entry(table, mask, granted):
                status = u64(OK)
    walk_leave(table)
    invalidate_local(mmu, desk[WALKER], ipa, level)
    return status
