"""Give a range its blocks back after dirty logging: every table of pages whose memory is one run becomes a block again.

Unlike ``collapse``, which asks whether the entries are alike, this is told what the range maps, so that holes and
write-protected pages, which logging leaves behind, do not keep a table alive. Idea: ``kvm_mmu_recover_huge_pages()``,
Linux ``arch/x86/kvm/mmu/tdp_mmu.c``.
"""

from __future__ import annotations

from ..atomics import compare_exchange, load_relaxed, store_release
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .collapse import collapse_range
from .entry import entry_line, is_table, leaf_descriptor, level_shift, page_get, table_page
from .layout import (
    BBM_2,
    LEVEL,
    LOCK_BASE,
    OK,
    OLD,
    PAGE_SHIFT,
    PERMISSION_MASK,
    RESULT,
    STRIDE,
    TABLE_PRE,
    VALID,
    VCPUS,
)
from .map import map_range
from .rwlock import write_lock, write_unlock
from .walk import DONE, walk_begin, walk_step
from .words import Table

__all__ = ["recover_range"]

_THREE = const(3)


@compiled
def _table_at(table: Table, ipa: U64, level: U64) -> U64:
    """The descriptor at ``level`` for ``ipa`` if it is a table, else 0. Exclusive. O(levels)."""
    shape, desk = table.shape, table.desk
    if walk_begin(table, ipa, ONE << level_shift(shape, level), TABLE_PRE) != OK:
        return u64(0)
    while True:
        if walk_step(table) == DONE:
            return u64(0)
        if desk[LEVEL] == level:
            return desk[OLD]


@compiled
def _make_alike(shape: Own, pool: Words, pages: Words, table: U64, level: U64, address: U64, attributes: U64) -> None:
    """Fill a table's holes, and give its leaves the rights of ``attributes``: what BBM level 2 asks for.

    None of this needs an invalidation: nothing valid goes, and who still holds a stricter entry only faults again.
    Entries that are neither empty nor leaves stay, and keep the table. O(entries).
    """
    entry = table_page(shape, table) << (shape[PAGE_SHIFT] - _THREE)
    end = entry + (ONE << shape[STRIDE])
    granule = ONE << level_shift(shape, level)
    while entry < end:
        old = load_relaxed(pool, entry)
        if old == 0:
            page_get(pages, entry_line(shape, entry), False)
            store_release(pool, entry, leaf_descriptor(shape, level, address, attributes))
        elif old & shape[VALID] != 0 and not is_table(shape, old, level):
            while True:  # not a plain store: hardware may set a flag in it at any time
                new = (old & ~shape[PERMISSION_MASK]) | (attributes & shape[PERMISSION_MASK])
                if new == old:
                    break
                seen = compare_exchange(pool, entry, old, new)
                if seen == old:
                    break
                old = seen
        address += granule
        entry += ONE


@compiled(nogil=True)
def recover_range(table: Table, ipa: U64, size: U64, address: U64, attributes: U64, level: U64, flags: U64) -> U64:
    """Replace each table at ``level`` inside ``[ipa, ipa + size)``, which maps ``address`` on, by a block; how many.

    ``attributes``: of the blocks; they are what faults would give these pages now. Addresses that do not fit the block
    size alike: 0. Without flags each table goes by break-before-make; with BBM_2 its entries are made alike, then the
    block is stored over it. One invalidation a table. Takes the lock, table by table, for writing, so that faults go on
    in between; nobody changes what the range maps meanwhile (slots_lock). O(tables in the range, their entries).
    """
    shape, pool, pages, mmu, desk = table
    recovered = u64(0)
    block = ONE << level_shift(shape, level)
    first = (ipa + block - ONE) & ~(block - ONE)
    if (address ^ ipa) & (block - ONE) != 0:
        return recovered
    lock = load_relaxed(mmu, LOCK_BASE)
    while first + block <= ipa + size:
        write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
        found = _table_at(table, first, level)
        if found != 0:
            output = address + (first - ipa)
            if flags & BBM_2 != 0:
                _make_alike(shape, pool, pages, found, level + ONE, output, attributes)
                status = collapse_range(table, first, block, level, BBM_2)
            else:
                status = map_range(table, first, block, output, attributes, level, u64(0))
            if status == OK:
                recovered += desk[RESULT]
        write_unlock(mmu, lock)
        first += block
    return recovered
