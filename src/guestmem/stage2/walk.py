"""The walker: visits the entries of a range, leaves and tables, in address order; and the lookup of one address.

``walk_step`` returns at each entry that the caller asked for, with the visit in the desk (LEVEL, ENTRY, OLD,
ADDRESS), and afterwards reads the entry again before it decides to descend, since the caller, or another walker, may
have changed it. A shared walk is inside an SRCU section (disciplines rcu, lock_subtree) or holds the pages on its
path (walk_refs) from ``walk_begin`` to ``walk_leave``. Idea: ``kvm_pgtable_walk()``, Linux
``arch/arm64/kvm/hyp/pgtable.c``; a cursor in place of callbacks and recursion.
"""

from __future__ import annotations

from ..atomics import load_acquire, load_relaxed
from ..compiled import ONE, U64, Own, compiled, const, u64
from ..rcu.srcu import srcu_enter, srcu_exit
from .entry import is_table, output_address, table_page
from .layout import (
    ADDRESS,
    BLOCK_KIND,
    BLOCK_LEVELS,
    DISCIPLINE,
    EAGAIN,
    EINVAL,
    END,
    ENOENT,
    ENTRY,
    ERANGE,
    FIND,
    FLAGS,
    HELD_CHILD,
    HOLDS,
    IPA_END,
    LAST_LEVEL,
    LEAF,
    LEVEL,
    NEXT_STEP,
    OK,
    OLD,
    PAGE_KIND,
    PAGE_MASK,
    PAGE_SHIFT,
    PATH,
    POOL_BASE,
    PROGRESS,
    RESULT,
    ROOT,
    RWLOCK,
    SHARED,
    SRCU_BASE,
    START_LEVEL,
    STRIDE,
    TABLE_MASK,
    TABLE_POST,
    TABLE_PRE,
    WALK_REFS,
    WALKER,
)
from .refs import hold_child, release_page
from .words import Table

__all__ = ["DONE", "LOST", "lookup", "lookup_shared", "walk_begin", "walk_leave", "walk_past", "walk_step"]

DONE = const(0)
"""What ``walk_step`` returns at the end; else LEAF, TABLE_PRE, TABLE_POST or LOST."""
LOST = const(1)
"""The table below an entry was taken away while the walk tried to hold it (walk_refs): EAGAIN, or go on past it."""

_LOOK, _AGAIN, _ADVANCE, _NEXT = const(0), const(1), const(2), const(3)
_THREE = const(3)


@compiled
def walk_begin(table: Table, address: U64, size: U64, flags: U64) -> U64:
    """Start a walk of ``[address, address + size)`` bytes; only if OK is there one to leave.

    EINVAL: not in whole pages, no size, or the table was destroyed; ERANGE: beyond the input addresses.
    """
    shape, _pool, _pages, mmu, desk = table
    root = load_relaxed(mmu, ROOT)
    if root == 0 or size == 0 or (address | size) & ((ONE << shape[PAGE_SHIFT]) - ONE) != 0:
        return EINVAL
    if address >= shape[IPA_END] or size > shape[IPA_END] - address:
        return ERANGE
    level = shape[START_LEVEL]
    shift = shape[PAGE_SHIFT] + shape[STRIDE] * (shape[LAST_LEVEL] - level)
    desk[ADDRESS] = address
    desk[END] = address + size
    desk[PROGRESS] = address
    desk[RESULT] = u64(0)
    desk[LEVEL] = level
    desk[ENTRY] = ((root - ONE) << (shape[PAGE_SHIFT] - _THREE)) + (address >> shift)
    desk[FLAGS] = flags
    desk[NEXT_STEP] = _LOOK
    desk[HELD_CHILD] = u64(0)
    desk[HOLDS] = u64(0)
    if flags & SHARED != 0:
        discipline = load_relaxed(mmu, DISCIPLINE)
        if discipline < RWLOCK:
            srcu_enter(mmu, load_relaxed(mmu, SRCU_BASE), desk[WALKER])
        elif discipline == WALK_REFS:
            desk[HOLDS] = ONE
    return OK


@compiled(inline=True)
def walk_step(table: Table) -> U64:
    """Go on to the next entry that the walk visits: LEAF, TABLE_PRE, TABLE_POST; or DONE, or LOST."""
    shape, pool, pages, mmu, desk = table
    step = desk[NEXT_STEP]
    level = desk[LEVEL]
    entry = desk[ENTRY]
    flags = desk[FLAGS]
    stride = shape[STRIDE]
    page_shift = shape[PAGE_SHIFT]
    last = shape[LAST_LEVEL]
    in_table = (ONE << stride) - ONE
    if desk[HELD_CHILD] != 0:
        _release_child(table)
    while True:
        if step == _ADVANCE:
            shift = page_shift + stride * (last - level)
            desk[ADDRESS] = ((desk[ADDRESS] >> shift) + ONE) << shift
            step = _NEXT
        if step == _NEXT:
            if desk[ADDRESS] < desk[END] and (level == shape[START_LEVEL] or (entry + ONE) & in_table != 0):
                entry += ONE
                step = _LOOK
            else:
                if level == shape[START_LEVEL]:
                    desk[NEXT_STEP] = _NEXT
                    return DONE
                if desk[HOLDS] != 0:
                    desk[HELD_CHILD] = (entry >> (page_shift - _THREE)) + ONE
                level -= ONE
                entry = desk[PATH + level]
                desk[LEVEL] = level
                desk[ENTRY] = entry
                if flags & TABLE_POST != 0:
                    desk[OLD] = load_acquire(pool, entry)
                    desk[NEXT_STEP] = _NEXT
                    return TABLE_POST
                if desk[HELD_CHILD] != 0:
                    _release_child(table)
                continue
        old = load_acquire(pool, entry)
        descends = is_table(shape, old, level)
        if step == _LOOK:
            if descends:
                if flags & TABLE_PRE != 0:
                    desk[ENTRY] = entry
                    desk[LEVEL] = level
                    desk[OLD] = old
                    desk[NEXT_STEP] = _AGAIN
                    return TABLE_PRE
            elif flags & LEAF != 0:
                desk[ENTRY] = entry
                desk[LEVEL] = level
                desk[OLD] = old
                desk[NEXT_STEP] = _ADVANCE if level == last else _AGAIN
                return LEAF
        if not descends:
            step = _ADVANCE
            continue
        if desk[HOLDS] != 0 and not hold_child(shape, pool, pages, mmu, entry, old):
            desk[ENTRY] = entry
            desk[LEVEL] = level
            desk[NEXT_STEP] = _ADVANCE
            return LOST
        desk[PATH + level] = entry
        level += ONE
        desk[LEVEL] = level
        index = (desk[ADDRESS] >> (page_shift + stride * (last - level))) & in_table
        entry = (table_page(shape, old) << (page_shift - _THREE)) + index
        desk[ENTRY] = entry
        step = _LOOK


@compiled(inline=True)
def walk_past(desk: Own) -> None:
    """Do not look at the visited entry again, nor descend: the next step goes on after it."""
    desk[NEXT_STEP] = _ADVANCE


@compiled
def _release_child(table: Table) -> None:
    """Drop the hold on the table that the walk has just come up from."""
    shape, pool, pages, mmu, desk = table
    page = desk[HELD_CHILD] - ONE
    desk[HELD_CHILD] = u64(0)
    release_page(shape, pool, pages, mmu, page)


@compiled
def walk_leave(table: Table) -> None:
    """End a walk, wherever it is: drop what it holds, or leave its SRCU section."""
    shape, pool, pages, mmu, desk = table
    if desk[FLAGS] & SHARED == 0:
        return
    if desk[HOLDS] != 0:
        if desk[HELD_CHILD] != 0:
            _release_child(table)
        while desk[LEVEL] > shape[START_LEVEL]:
            page = desk[ENTRY] >> (shape[PAGE_SHIFT] - _THREE)
            desk[LEVEL] -= ONE
            desk[ENTRY] = desk[PATH + desk[LEVEL]]
            release_page(shape, pool, pages, mmu, page)
        return
    if load_relaxed(mmu, DISCIPLINE) < RWLOCK:
        srcu_exit(mmu, load_relaxed(mmu, SRCU_BASE), desk[WALKER])


@compiled
def lookup(table: Table, address: U64) -> U64:
    """Walk to the leaf for ``address``: OK, and in the desk from FIND its descriptor, level, output address, entry.

    ENOENT: no leaf that hardware takes; FIND still tells the entry where the walk ended. EINVAL: destroyed; ERANGE.
    Takes no lock and holds nothing: the caller is exclusive, or in a read-side section that keeps table pages (lock and
    SRCU), or, as hardware, is waited for by invalidations. O(levels).
    """
    shape, pool, _pages, mmu, desk = table
    root = load_relaxed(mmu, ROOT)
    if root == 0:
        return EINVAL
    if address >= shape[IPA_END]:
        return ERANGE
    stride = shape[STRIDE]
    last = shape[LAST_LEVEL]
    page_shift = shape[PAGE_SHIFT]
    level = shape[START_LEVEL]
    shift = page_shift + stride * (last - level)
    entry = ((root - ONE) << (page_shift - _THREE)) + (address >> shift)
    in_table = (ONE << stride) - ONE
    descriptor = load_acquire(pool, entry)
    while is_table(shape, descriptor, level):
        level += ONE
        shift -= stride
        child = output_address(shape, descriptor) - shape[POOL_BASE]
        entry = (child >> 3) + ((address >> shift) & in_table)
        descriptor = load_acquire(pool, entry)
    return _found(shape, desk, address, descriptor, level, entry)


@compiled
def lookup_shared(table: Table, address: U64) -> U64:
    """As ``lookup``, for a caller that holds the lock for reading only; also EAGAIN. O(levels)."""
    shape, desk = table.shape, table.desk
    page = ONE << shape[PAGE_SHIFT]
    status = walk_begin(table, address & ~(page - ONE), page, SHARED | LEAF)
    if status != OK:
        return status
    status = EAGAIN
    if walk_step(table) == LEAF:
        status = _found(shape, desk, address, desk[OLD], desk[LEVEL], desk[ENTRY])
    walk_leave(table)
    return status


@compiled(inline=True)
def _found(shape: Own, desk: Own, address: U64, descriptor: U64, level: U64, entry: U64) -> U64:
    """Write what a lookup found to the desk."""
    last = shape[LAST_LEVEL]
    shift = shape[PAGE_SHIFT] + shape[STRIDE] * (last - level)
    desk[FIND] = descriptor
    desk[FIND + ONE] = level
    desk[FIND + _THREE] = entry
    if level == last:
        if descriptor & shape[PAGE_MASK] != shape[PAGE_KIND]:
            return ENOENT
    elif descriptor & shape[TABLE_MASK] != shape[BLOCK_KIND] or (shape[BLOCK_LEVELS] >> level) & ONE == 0:
        return ENOENT
    output = output_address(shape, descriptor) >> shift << shift  # nT of a block lies among the address bits
    desk[FIND + u64(2)] = output | (address & ((ONE << shift) - ONE))
    return OK
