"""The host's own identity map: filled by its faults with the largest blocks that fit, broken for single pages.

Memory is mapped with all rights, the rest readable and writable. Linux: ``host_stage2_idmap()``,
``host_stage2_adjust_range()``, ``host_stage2_set_owner_locked()``, ``arch/arm64/kvm/hyp/nvhe/mem_protect.c``. Unlike
mainline a block that is broken keeps its other pages mapped, as in Android ("Prefault entries when splitting a block
mapping", 2024).
"""

from __future__ import annotations

from ...atomics import fetch_add, load_relaxed
from ...compiled import ONE, TWO, U64, compiled, const, u64
from ..annotate import annotate_range
from ..entry import break_entry, leaf_descriptor, level_shift, make_entry, set_table_state, table_descriptor
from ..free_list import cache_put, cache_take, cache_topup
from ..layout import (
    ADDRESS,
    EAGAIN,
    ENOMEM,
    EPERM,
    ERANGE,
    FIND,
    IPA_END,
    LAST_LEVEL,
    LEAF,
    LEVEL,
    LOCK_BASE,
    LOCKED,
    MIN_BLOCK_LEVEL,
    OK,
    OLD,
    OVER_OWNER,
    PAGE_SHIFT,
    SHARED,
    START_LEVEL,
    VALID,
    VCPUS,
    WALKER,
)
from ..map import map_range
from ..rwlock import read_lock, read_unlock, write_lock, write_unlock
from ..split import split_range
from ..unmap import unmap_range
from ..walk import lookup, walk_begin, walk_leave, walk_step
from ..words import Table
from .layout import (
    BLOCKS_BROKEN,
    EEXIST,
    FAULTS,
    HOST_MEMORY,
    HOST_MMIO,
    MMIO_UNMAPPED,
    REGION_BASE,
    REGIONS,
)
from .ownership import is_memory, is_uniform
from .words import Hyp

__all__ = ["host_fault", "map_host_page", "mark_host_page", "take_pages", "unmap_mmio"]

_DESCEND = const(4096)
"""No status of Linux's: a table was put, look below."""


@compiled(nogil=True)
def host_fault(hyp: Hyp, address: U64) -> U64:
    """The host touched ``address``: map the largest block around it, from the level of the empty entry found on.

    A block holds memory of one region, or none. OK; EEXIST: mapped already; EAGAIN: another CPU was faster; EPERM: the
    page is somebody else's (the host gets an abort); ERANGE: outside the input; ENOMEM: no table pages, even after all
    that is no memory was unmapped. Shared: takes the host's lock for reading. O(levels + regions).
    """
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    if address >= shape[IPA_END]:
        return ERANGE
    # With fewer pages it is still tried: a block needs none, and a table is put only where a leaf does not fit.
    take_pages(hyp, shape[LAST_LEVEL] - shape[START_LEVEL])
    lock = load_relaxed(host, LOCK_BASE)
    read_lock(host, lock, desk[WALKER])
    page = ONE << shape[PAGE_SHIFT]
    status = walk_begin(host_table, address & ~(page - ONE), page, SHARED | LEAF)
    if status == OK:
        status = _DESCEND
        while status == _DESCEND:
            status = EAGAIN
            if walk_step(host_table) == LEAF:
                status = _fill_entry(hyp)
        walk_leave(host_table)
    read_unlock(host, lock, desk[WALKER])
    if status == OK:
        fetch_add(el2, FAULTS, ONE)
    return status


@compiled
def _fill_entry(hyp: Hyp) -> U64:
    """Put a leaf into the visited entry if it is empty, or a table if a leaf does not fit (_DESCEND)."""
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    old = desk[OLD]
    if old & shape[VALID] != 0:
        return EEXIST
    if old != 0:
        return EAGAIN if old == shape[LOCKED] else EPERM
    level = desk[LEVEL]
    shift = level_shift(shape, level)
    start = desk[ADDRESS] >> shift << shift
    end = start + (ONE << shift)
    leaf = level == shape[LAST_LEVEL] or (level >= shape[MIN_BLOCK_LEVEL] and is_uniform(shape, el2, start, end))
    page = u64(0)
    if not leaf:
        page = cache_take(desk)
        if page == 0:
            return ENOMEM
    if not break_entry(host_table):
        if page != 0:
            cache_put(desk, page - ONE)
        return EAGAIN
    if not leaf:
        set_table_state(pages, page - ONE, level, ONE)
        make_entry(host_table, table_descriptor(shape, page - ONE))
        return _DESCEND
    attributes = HOST_MEMORY if is_memory(el2, start, end) else HOST_MMIO
    make_entry(host_table, leaf_descriptor(shape, level, start, load_relaxed(el2, attributes)))
    return OK


@compiled(nogil=True)
def take_pages(hyp: Hyp, least: U64) -> U64:
    """Before any lock: see that the desk's cache holds ``least`` pages; OK or ENOMEM.

    EL2's pool is fixed. When it is empty, what the host maps that is no memory makes room, once: it can fault again.
    """
    shape, pool, pages, host, desk, el2 = hyp
    if cache_topup(shape, pool, pages, desk, least) == OK:
        return OK
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    unmap_mmio(hyp)
    write_unlock(host, lock)
    fetch_add(el2, MMIO_UNMAPPED, ONE)
    return cache_topup(shape, pool, pages, desk, least)


@compiled(nogil=True)
def unmap_mmio(hyp: Hyp) -> None:
    """Unmap all that is no memory; its tables go back to the pool. Exclusive. O(regions + entries unmapped)."""
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    at = load_relaxed(el2, REGION_BASE)
    last = at + (load_relaxed(el2, REGIONS) << 1)
    start = u64(0)
    while at < last:
        end = load_relaxed(el2, at)
        if end > start:
            unmap_range(host_table, start, end - start, u64(0))
        start = load_relaxed(el2, at + ONE)
        at += TWO
    if start < shape[IPA_END]:
        unmap_range(host_table, start, shape[IPA_END] - start, u64(0))


@compiled
def mark_host_page(hyp: Hyp, page: U64, mark: U64) -> U64:
    """Take a page from the host: break the block it lies in, a level at a time, and put ``mark`` in its place.

    All other pages of the block stay mapped. OK, given levels - 1 pages in the cache. Exclusive. O(entries a table).
    """
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    address = page << shape[PAGE_SHIFT]
    size = ONE << shape[PAGE_SHIFT]
    while lookup(host_table, address) == OK and desk[FIND + ONE] != shape[LAST_LEVEL]:
        below = desk[FIND + ONE] + ONE
        status = split_range(host_table, address, size, below, ONE)
        if status != OK:
            return status
        fetch_add(el2, BLOCKS_BROKEN, ONE)
    return annotate_range(host_table, address, size, mark, u64(0))


@compiled
def map_host_page(table: Table, page: U64, attributes: U64) -> U64:
    """Map one page over a mark, or with another state over itself. OK. Exclusive. O(levels)."""
    shape = table.shape
    address = page << shape[PAGE_SHIFT]
    size = ONE << shape[PAGE_SHIFT]
    last = shape[LAST_LEVEL]
    return map_range(table, address, size, address, attributes, last, OVER_OWNER)
