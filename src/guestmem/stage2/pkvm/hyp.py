"""The host and the hypervisor: share, unshare, pin, donate pages, and give them back. Compiled, each with its lock.

All checks come before the first change, so a refusal changes nothing; table pages are taken before the lock. The
hypervisor's own stage-1 table is not modelled, its state of a page stands for it. Linux:
``__pkvm_host_share_hyp()`` and those beside it, ``arch/arm64/kvm/hyp/nvhe/mem_protect.c``.
"""

from __future__ import annotations

from ...atomics import load_relaxed, store_relaxed
from ...compiled import ONE, U64, Own, Words, compiled, u64, wrapping
from ..layout import (
    EBUSY,
    EINVAL,
    ENOMEM,
    EPERM,
    LAST_LEVEL,
    LOCK_BASE,
    OK,
    OWNER_SHIFT,
    OWNER_TYPE,
    PAGE_SHIFT,
    START_LEVEL,
    STRIDE,
    VCPUS,
)
from ..rwlock import write_lock, write_unlock
from ..words import Table
from .host import map_host_page, mark_host_page, take_pages
from .join import join_range
from .layout import (
    HOST_MEMORY,
    JOIN,
    NOPAGE,
    OWNED,
    OWNER_HYP,
    PIN_MASK,
    PIN_SHIFT,
    SHARED_BORROWED,
    SHARED_OWNED,
)
from .ownership import is_memory, page_word, pages_are, set_host_state, set_hyp_state
from .words import Hyp

__all__ = ["host_donate_hyp", "host_share_hyp", "host_unshare_hyp", "hyp_donate_host", "hyp_pin"]


@compiled
def _checked(shape: Own, el2: Words, page: U64, count: U64, host: U64, hyp: U64) -> U64:
    """EINVAL unless ``count`` pages from ``page`` on are memory and at most a table's; EPERM by their states."""
    if count == 0 or count > ONE << shape[STRIDE]:
        return EINVAL
    if not is_memory(el2, page << shape[PAGE_SHIFT], (page + count) << shape[PAGE_SHIFT]):
        return EINVAL
    if not pages_are(el2, page, page + count, host, hyp):
        return EPERM
    return OK


@compiled
def _set_states(shape: Own, el2: Words, page: U64, count: U64, host: U64, hyp: U64) -> None:
    end = page + count
    while page < end:
        set_host_state(shape, el2, page, host)
        set_hyp_state(el2, page, hyp)
        page += ONE


@compiled(nogil=True)
def host_share_hyp(shape: Own, host: Words, el2: Words, page: U64, count: U64) -> U64:
    """The host lets the hypervisor use ``count`` pages. OK; EINVAL; EPERM unless host OWNED, hyp NOPAGE. O(count)."""
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    status = _checked(shape, el2, page, count, OWNED, NOPAGE)
    if status == OK:
        _set_states(shape, el2, page, count, SHARED_OWNED, SHARED_BORROWED)
    write_unlock(host, lock)
    return status


@compiled(nogil=True)
def host_unshare_hyp(shape: Own, host: Words, el2: Words, page: U64, count: U64) -> U64:
    """The host ends that. OK; EINVAL; EPERM unless host SHARED_OWNED, hyp SHARED_BORROWED; EBUSY if one is pinned."""
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    status = _checked(shape, el2, page, count, SHARED_OWNED, SHARED_BORROWED)
    at = page
    while status == OK and at < page + count:
        if (load_relaxed(el2, page_word(el2, at)) >> PIN_SHIFT) & PIN_MASK != 0:
            status = EBUSY
        at += ONE
    if status == OK:
        _set_states(shape, el2, page, count, OWNED, NOPAGE)
    write_unlock(host, lock)
    return status


@compiled(nogil=True)
def hyp_pin(shape: Own, host: Words, el2: Words, page: U64, pin: bool) -> U64:
    """The hypervisor pins a page that it borrows, or drops a pin. OK; EINVAL; EPERM: not borrowed, or no pin; EBUSY."""
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    status = _checked(shape, el2, page, ONE, SHARED_OWNED, SHARED_BORROWED)
    if status == OK:
        word = page_word(el2, page)
        old = load_relaxed(el2, word)
        pins = (old >> PIN_SHIFT) & PIN_MASK
        if pin:
            if pins == PIN_MASK:
                status = EBUSY
            else:
                store_relaxed(el2, word, old + (ONE << PIN_SHIFT))
        elif pins == 0:
            status = EPERM
        else:
            store_relaxed(el2, word, wrapping(old - (ONE << PIN_SHIFT)))
    write_unlock(host, lock)
    return status


@compiled(nogil=True)
def host_donate_hyp(hyp: Hyp, page: U64, count: U64) -> U64:
    """The host gives ``count`` pages to the hypervisor, and loses them: blocks are broken, the rest of them stays.

    OK; EINVAL; EPERM unless host OWNED, hyp NOPAGE; ENOMEM. O(count * levels).
    """
    # Up to a table's pages may lie in two blocks of each size.
    shape, _pool, _pages, host, _desk, el2 = hyp
    least = shape[LAST_LEVEL] - shape[START_LEVEL]
    if count > 1:
        least += least
    if take_pages(hyp, least) != OK:
        return ENOMEM
    mark = shape[OWNER_TYPE] | (OWNER_HYP << shape[OWNER_SHIFT])
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    status = _checked(shape, el2, page, count, OWNED, NOPAGE)
    at = page
    while status == OK and at < page + count:
        status = mark_host_page(hyp, at, mark)
        at += ONE
    if status == OK:
        _set_states(shape, el2, page, count, NOPAGE, OWNED)
    write_unlock(host, lock)
    return status


@compiled(nogil=True)
def hyp_donate_host(hyp: Hyp, page: U64, count: U64) -> U64:
    """The hypervisor gives ``count`` pages to the host, who has them mapped again, and joins blocks that are whole.

    OK; EINVAL; EPERM unless hyp OWNED, host NOPAGE. O(count * levels).
    """
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    status = _checked(shape, el2, page, count, NOPAGE, OWNED)
    at = page
    while status == OK and at < page + count:
        status = map_host_page(host_table, at, load_relaxed(el2, HOST_MEMORY))
        at += ONE
    if status == OK:
        _set_states(shape, el2, page, count, OWNED, NOPAGE)
    write_unlock(host, lock)
    if status == OK and load_relaxed(el2, JOIN) != u64(0):
        join_range(hyp, page, page + count)
    return status
