"""Pages return to the host: one by one or all from a dying VM, or by force; blocks are joined when they are whole.

What a guest owned is wiped before the host has it. Linux: ``__pkvm_host_reclaim_page_guest()``,
``__pkvm_host_force_reclaim_page_guest()``, ``arch/arm64/kvm/hyp/nvhe/mem_protect.c``; there the host asks page by page
and nothing is joined.
"""

from __future__ import annotations

from ...atomics import fetch_add, load_relaxed
from ...compiled import ONE, U64, Words, compiled, const, u64
from ..annotate import annotate_range
from ..entry import output_address
from ..layout import (
    ADDRESS,
    EAGAIN,
    EINVAL,
    ENOENT,
    EPERM,
    FIND,
    IPA_END,
    LAST_LEVEL,
    LEAF,
    LEVEL,
    LOCK_BASE,
    OK,
    OLD,
    OWNER_MASK,
    OWNER_SHIFT,
    OWNER_TYPE,
    PAGE_SHIFT,
    STRIDE,
    TYPE_MASK,
    VALID,
    VCPUS,
)
from ..rwlock import write_lock, write_unlock
from ..unmap import unmap_range
from ..walk import DONE, lookup, walk_begin, walk_step
from ..words import Table
from .guest import count_pages, guest_leaf, guest_state, lock_both, unlock_both, vm_state
from .host import map_host_page
from .join import join_page
from .layout import (
    HOST_MEMORY,
    JOIN,
    NOPAGE,
    OWNED,
    OWNED_PAGES,
    OWNER_GUEST,
    POISON,
    SHARED_BORROWED,
    VM_DYING,
    VM_NONE,
    WIPED,
)
from .ownership import host_state, is_memory, set_host_state
from .transitions import host_unshare_guest
from .words import Hyp

__all__ = ["force_reclaim", "host_reclaim_guest", "page_owner", "teardown_guest"]

_GFN_MASK = const((1 << 40) - 1)
_HANDLE_MASK = const(0xFFFF)


@compiled
def _return_page(hyp: Hyp, page: U64) -> None:
    """The host has a page again, alone and mapped."""
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    map_host_page(host_table, page, load_relaxed(el2, HOST_MEMORY))
    set_host_state(shape, el2, page, OWNED)


@compiled(nogil=True)
def host_reclaim_guest(hyp: Hyp, guest: Words, handle: U64, gfn: U64) -> U64:
    """The host takes back what a dying VM owns at ``gfn``; a page that it shared is not wiped, the host saw it.

    OK; ENOENT: no such VM, nothing there; EINVAL: not dying; ERANGE; E2BIG, EHWPOISON as ``guest_share_host``; EPERM:
    the guest borrowed it. O(levels), and the tables joined.
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    page = u64(0)
    lock_both(host, guest)
    state = vm_state(el2, handle)
    status = u64(OK)
    if state == VM_NONE:
        status = ENOENT
    elif state != VM_DYING:
        status = EINVAL
    else:
        status = guest_leaf(guest_table, gfn)
    if status == OK:
        page = output_address(shape, desk[FIND]) >> shape[PAGE_SHIFT]
        state = guest_state(shape, el2, desk[FIND])
        if state == SHARED_BORROWED:
            status = EPERM
        else:
            to = shape[PAGE_SHIFT]
            unmap_range(guest_table, gfn << to, ONE << to, u64(0))
            if state == OWNED:
                fetch_add(el2, WIPED, ONE)
            _return_page(hyp, page)
            count_pages(el2, handle, OWNED_PAGES, u64(0), ONE)
    unlock_both(host, guest)
    if status == OK and load_relaxed(el2, JOIN) != 0:
        join_page(hyp, page)
    return status


@compiled(nogil=True)
def force_reclaim(hyp: Hyp, guest: Words, handle: U64, page: U64) -> U64:
    """The host takes a page back from a live guest, ``handle`` by ``page_owner``, which then finds it poisoned.

    OK; EINVAL: no memory; EPERM unless host NOPAGE, a guest has it, and alone; EAGAIN: that guest is not, or no longer,
    ``handle``, or gone. O(levels), and the tables joined.
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    host_table = Table(shape, pool, pages, host, desk)
    lock_both(host, guest)
    to = shape[PAGE_SHIFT]
    status = u64(OK)
    if not is_memory(el2, page << to, (page + ONE) << to):
        status = EINVAL
    elif host_state(el2, page) != NOPAGE:
        status = EPERM
    else:
        lookup(host_table, page << to)
        payload = desk[FIND] >> shape[OWNER_SHIFT]
        gfn = (payload >> 19) & _GFN_MASK
        if payload & shape[OWNER_MASK] != OWNER_GUEST:
            status = EPERM
        elif (payload >> 3) & _HANDLE_MASK != handle or vm_state(el2, handle) == VM_NONE:
            status = EAGAIN
        elif guest_leaf(guest_table, gfn) != OK or guest_state(shape, el2, desk[FIND]) != OWNED:
            status = EPERM
        else:
            annotate_range(guest_table, gfn << to, ONE << to, POISON, u64(0))
            fetch_add(el2, WIPED, ONE)
            _return_page(hyp, page)
            count_pages(el2, handle, OWNED_PAGES, u64(0), ONE)
    unlock_both(host, guest)
    if status == OK and load_relaxed(el2, JOIN) != 0:
        join_page(hyp, page)
    return status


@compiled(nogil=True)
def page_owner(table: Table, page: U64) -> U64:
    """What the host's invalid entry for a page says: owner, handle << 3, frame << 19; 0: none. O(levels)."""
    shape, _pool, _pages, host, desk = table
    found = u64(0)
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    lookup(table, page << shape[PAGE_SHIFT])
    descriptor = desk[FIND]
    if descriptor & shape[VALID] == 0 and descriptor & shape[TYPE_MASK] == shape[OWNER_TYPE]:
        found = (descriptor & ~shape[TYPE_MASK]) >> shape[OWNER_SHIFT]
    write_unlock(host, lock)
    return found


@compiled(nogil=True)
def teardown_guest(hyp: Hyp, guest: Words, handle: U64, start: U64, budget: U64) -> U64:
    """Give back what a dying VM owns, and end what it borrows, ``budget`` leaves from address ``start`` on.

    Returns the address to go on at; the end of the input when nothing is left. Locks are taken for each leaf, so that
    other CPUs come between. O(leaves * levels + entries passed).
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    while budget != 0 and start < shape[IPA_END]:
        lock_both(host, guest)
        status = walk_begin(guest_table, start, shape[IPA_END] - start, LEAF)
        found = False
        while status == OK and not found and walk_step(guest_table) != DONE:
            found = desk[OLD] & shape[VALID] != 0
        start = desk[ADDRESS]
        count = ONE << (shape[STRIDE] * (shape[LAST_LEVEL] - desk[LEVEL]))
        borrowed = found and guest_state(shape, el2, desk[OLD]) == SHARED_BORROWED
        unlock_both(host, guest)
        if not found:
            return shape[IPA_END]
        gfn = start >> shape[PAGE_SHIFT]
        if borrowed:
            host_unshare_guest(hyp, guest, handle, gfn, count)
        else:
            host_reclaim_guest(hyp, guest, handle, gfn)
        start += count << shape[PAGE_SHIFT]
        budget -= ONE
    return start
