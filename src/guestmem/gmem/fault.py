"""Faults on a guest_memfd: the host's through its mapping, the guest's through a slot, and pins.

Source: ``kvm_gmem_fault_user_mapping()`` and ``kvm_gmem_get_pfn()``, Linux ``virt/kvm/guest_memfd.c`` (with the lock as
in "guest_memfd: In-place conversion support"); ``gup_fast_pte_range()``, ``mm/gup.c``.
"""

from __future__ import annotations

from ..atomics import (
    exchange,
    fence,
    fetch_add,
    fetch_or,
    host_load,
    host_store,
    load_acquire,
    load_relaxed,
)
from ..compiled import U64, Own, Words, compiled, const, u64
from ..ranges.lookup import ranges_load
from ..rcu import srcu_enter, srcu_exit
from .folio import folio_create, folio_head, folio_put, folio_try_get, page_word
from .invalidate_lock import read_lock, read_unlock
from .layout import (
    ABSENT,
    ADDRESS,
    BARRED,
    END_OF_FILE,
    FOLIO,
    GUEST_BARS,
    GUEST_FAULTS,
    HOST_BARS,
    HOST_FAULTS,
    HOST_TLB,
    LARGE,
    LAST,
    MAPPED,
    NPAGES,
    OK,
    ORDER_MASK,
    ORDER_SHIFT,
    POISON,
    POISONED,
    PRESENT,
    PRIVATE,
    PTE,
    TAIL,
    UPTODATE,
    WRONG_KIND,
)

__all__ = ["guest_fault", "host_access", "host_fault", "pin_page"]

_ONE = const(1)
_PAGE_SHIFT = const(12)


@compiled
def _host_page(inode: Words, states: Words, index: U64, create: bool) -> U64:
    """Check a host fault at page ``index`` and take a reference to its folio. The lock is held for reading."""
    if index >= load_relaxed(inode, NPAGES):
        return END_OF_FILE
    if ranges_load(states, index) & load_relaxed(inode, HOST_BARS) != 0:
        return BARRED
    at = page_word(index) + FOLIO
    word = load_acquire(inode, at)
    if word & PRESENT == 0:
        if not create:
            return ABSENT
        folio_create(inode, index, u64(0))
        word = load_acquire(inode, at)
    if word & TAIL != 0 or (word >> ORDER_SHIFT) & ORDER_MASK != 0:
        return LARGE
    if word & POISONED != 0:
        return POISON
    fetch_add(inode, at, _ONE)
    if word & UPTODATE == 0:
        fetch_or(inode, at, UPTODATE)
    return OK


@compiled(nogil=True)
def host_fault(inode: Words, states: Words, index: U64, create: bool) -> U64:
    """A host thread touches page ``index``, which is not mapped: map it, or say why not (SIGBUS).

    ``create``: a page that is not there is made, its memory committed by the touch; else ABSENT, and the caller commits
    it first. All of it under the lock, which stands for the kernel's folio lock, too: that one is held until the entry
    is there, and memory that fails (``Inode.poison``) is unmapped from all who had it, not beneath who is mapping it.
    """
    read_lock(inode)
    status = _host_page(inode, states, index, create)
    if status == OK:
        if exchange(inode, page_word(index) + PTE, _ONE) == 0:
            fetch_add(inode, MAPPED, _ONE)
            fetch_add(inode, HOST_FAULTS, _ONE)
        elif folio_put(inode, index):  # another thread was faster, and has a reference
            status = LAST
    read_unlock(inode)
    return status


@compiled(nogil=True)
def host_access(
    inode: Words, states: Words, host: U64, offset: U64, value: U64, write: bool, create: bool, out: Own
) -> U64:
    """Host thread ``host`` reads 8 aligned bytes at ``offset`` into out[0], or writes ``value``: OK, or why SIGBUS.

    The section is what a translation in a TLB is to the real host: who unmaps the page waits until it is over.
    """
    index = offset >> _PAGE_SHIFT
    while True:
        srcu_enter(inode, HOST_TLB, host)
        if index < load_relaxed(inode, NPAGES) and load_acquire(inode, page_word(index) + PTE) != 0:
            address = load_relaxed(inode, ADDRESS) + offset
            if write:
                host_store(address, value)
            else:
                out[0] = host_load(address)
            srcu_exit(inode, HOST_TLB, host)
            return OK
        srcu_exit(inode, HOST_TLB, host)
        status = host_fault(inode, states, index, create)
        if status != OK:
            return status


@compiled(nogil=True)
def pin_page(inode: Words, states: Words, index: U64, create: bool) -> U64:
    """Take a reference to page ``index`` for as long as one likes, as the host may: OK, or why not (EFAULT).

    First as ``gup_fast``: of a page that is mapped, if it still is when the reference is taken (the fence's other side
    is ``unmap_host``); else by a fault. LAST: a reference that was taken in vain was the last one of a folio that wants
    to hear of it; the caller tells, and tries again.
    """
    while True:
        mapped = index < load_relaxed(inode, NPAGES) and load_acquire(inode, page_word(index) + PTE) != 0
        if mapped and folio_try_get(inode, index):
            fence()
            if load_acquire(inode, page_word(index) + PTE) != 0:
                return OK
            if folio_put(inode, index):
                return LAST
        status = host_fault(inode, states, index, create)
        if status != OK:
            return status


@compiled(nogil=True)
def guest_fault(inode: Words, states: Words, index: U64, private: bool, create: bool, out: Own) -> U64:
    """kvm_gmem_get_pfn(): write the page's host address, its folio's order and its state to ``out``.

    The page's reference is dropped before this returns: the mapping that the caller makes is guarded by its
    invalidation sequence, which it read before, and by the invalidation that every change of state begins with.
    """
    read_lock(inode)
    status = OK
    if index >= load_relaxed(inode, NPAGES):
        status = END_OF_FILE
    else:
        state = ranges_load(states, index)
        kinds = load_relaxed(inode, PRIVATE)
        if state & load_relaxed(inode, GUEST_BARS) != 0:
            status = BARRED
        elif kinds != 0 and private != (state & kinds != 0):
            status = WRONG_KIND
        else:
            head = folio_head(inode, index)
            at = page_word(head) + FOLIO
            word = load_acquire(inode, at)
            if word & PRESENT == 0 and create:
                folio_create(inode, index, u64(0))
                word = load_acquire(inode, at)
            if word & PRESENT == 0:
                status = ABSENT
            elif word & POISONED != 0:
                status = POISON
            else:
                if word & UPTODATE == 0:
                    fetch_or(inode, at, UPTODATE)
                fetch_add(inode, GUEST_FAULTS, _ONE)
                out[0] = load_relaxed(inode, ADDRESS) + (index << _PAGE_SHIFT)
                out[1] = (word >> ORDER_SHIFT) & ORDER_MASK
                out[2] = state
    read_unlock(inode)
    return status
