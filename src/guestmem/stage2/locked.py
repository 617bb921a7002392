"""Operations with all that a vCPU does around them: pages before the lock, the lock, and what the status asks for.

Idea: ``user_mem_abort()``, Linux ``arch/arm64/kvm/mmu.c``: fill the memory cache, take ``mmu_lock`` for reading, map
shared.
"""

from __future__ import annotations

from ..atomics import load_relaxed
from ..compiled import U64, compiled
from .discipline import reclaim_tables
from .free_list import cache_topup
from .layout import (
    CACHE_CAPACITY,
    CACHE_COUNT,
    EBUSY,
    ENOMEM,
    LAST_LEVEL,
    LOCK_BASE,
    OK,
    SHARED,
    START_LEVEL,
    VCPUS,
    WALKER,
)
from .map import map_range
from .rwlock import read_lock, read_unlock, write_lock, write_unlock
from .words import Table

__all__ = ["map_shared", "refill"]


@compiled(nogil=True)
def refill(table: Table) -> U64:
    """Before the lock: reclaim what is due, and see that a walk to the last level finds pages in the cache.

    OK; ENOMEM if there is none at all, even after waiting for the grace periods of what this walker put aside.
    """
    shape, pool, pages, _mmu, desk = table
    least = shape[LAST_LEVEL] - shape[START_LEVEL]
    if desk[CACHE_COUNT] >= least:
        return OK
    reclaim_tables(table, False)
    if cache_topup(shape, pool, pages, desk, least) == OK:
        return OK
    reclaim_tables(table, True)
    if cache_topup(shape, pool, pages, desk, least) == OK or desk[CACHE_COUNT] > 0:
        return OK
    return ENOMEM


@compiled(nogil=True)
def map_shared(table: Table, ipa: U64, size: U64, address: U64, attributes: U64, block_level: U64, flags: U64) -> U64:
    """As ``map_range`` by a vCPU: refill, lock for reading, map shared, unlock; once more exclusively after EBUSY.

    Returns its status word. ENOMEM with pages in the cache: the queue of deferred pages was full, and is reclaimed.
    """
    shape, pool, pages, mmu, desk = table
    if refill(table) != OK:
        return ENOMEM
    lock = load_relaxed(mmu, LOCK_BASE)
    read_lock(mmu, lock, desk[WALKER])
    status = map_range(table, ipa, size, address, attributes, block_level, flags | SHARED)
    read_unlock(mmu, lock, desk[WALKER])
    if status == EBUSY:
        write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
        status = map_range(table, ipa, size, address, attributes, block_level, flags & ~SHARED)
        write_unlock(mmu, lock)
    if status == ENOMEM:
        reclaim_tables(table, True)
        cache_topup(shape, pool, pages, desk, desk[CACHE_CAPACITY])
    return status
