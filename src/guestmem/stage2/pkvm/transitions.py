"""The host and guests: donate, share, unshare, and reclaim. Compiled, each with its locks.

All checks come before the first change, so a refusal changes nothing; table pages are taken before the locks (mainline
failed in between until 7.1). Linux: ``__pkvm_host_donate_guest()`` and those beside it,
``arch/arm64/kvm/hyp/nvhe/mem_protect.c``.
"""

from __future__ import annotations

from ...atomics import load_relaxed, store_relaxed
from ...compiled import ONE, U64, Own, Words, compiled, u64, wrapping
from ..entry import output_address
from ..layout import (
    EBUSY,
    EINVAL,
    ENOENT,
    ENOMEM,
    EPERM,
    FIND,
    LAST_LEVEL,
    MIN_BLOCK_LEVEL,
    OK,
    PAGE_SHIFT,
    START_LEVEL,
    STRIDE,
)
from ..unmap import unmap_range
from ..words import Table
from .guest import (
    check_live,
    count_pages,
    guest_leaf,
    guest_state,
    is_empty,
    lock_both,
    map_guest,
    unlock_both,
    vm_state,
)
from .host import map_host_page, mark_host_page, take_pages
from .layout import (
    BORROWED_PAGES,
    E2BIG,
    GUEST_BORROWED,
    GUEST_OWNED,
    GUEST_SHARED,
    HOST_BORROWED,
    MAX_SHARES,
    NOPAGE,
    OWNED,
    OWNED_PAGES,
    SHARE_SHIFT,
    SHARED_BORROWED,
    SHARED_OWNED,
    VM_NONE,
)
from .ownership import (
    guest_mark,
    host_state,
    hyp_state,
    is_memory,
    page_word,
    pages_are,
    set_host_state,
    share_count,
)
from .words import Hyp

__all__ = [
    "guest_share_host",
    "guest_unshare_host",
    "host_donate_guest",
    "host_share_guest",
    "host_unshare_guest",
]


@compiled(nogil=True)
def host_donate_guest(hyp: Hyp, guest: Words, handle: U64, page: U64, gfn: U64) -> U64:
    """The host gives a page to a guest, at ``gfn``, and loses it: its block is broken, the rest of it stays mapped.

    OK; ENOENT, EINVAL: no such VM, dying, no memory; ERANGE; EPERM unless host OWNED, hyp and guest NOPAGE; ENOMEM.
    O(levels + entries a table, if a block breaks).
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    least = (shape[LAST_LEVEL] - shape[START_LEVEL]) << ONE
    if take_pages(hyp, least) != OK:
        return ENOMEM
    lock_both(host, guest)
    status = check_live(el2, handle)
    if status == OK and not is_memory(el2, page << shape[PAGE_SHIFT], (page + ONE) << shape[PAGE_SHIFT]):
        status = EINVAL
    if status == OK and not pages_are(el2, page, page + ONE, OWNED, NOPAGE):
        status = EPERM
    if status == OK:
        status = is_empty(guest_table, gfn, ONE)
    if status == OK:
        status = mark_host_page(hyp, page, guest_mark(shape, handle, gfn))
    if status == OK:
        set_host_state(shape, el2, page, NOPAGE)
        count_pages(el2, handle, OWNED_PAGES, ONE, u64(0))
        status = map_guest(guest_table, gfn, page, ONE, load_relaxed(el2, GUEST_OWNED))
    unlock_both(host, guest)
    return status


@compiled
def _may_share(shape: Own, el2: Words, page: U64, gfn: U64, count: U64) -> U64:
    """What the host's side says to sharing ``count`` pages with a guest."""
    if count != 1:
        block = ONE << shape[STRIDE]
        if count != block or shape[LAST_LEVEL] - ONE < shape[MIN_BLOCK_LEVEL] or (page | gfn) & (block - ONE) != 0:
            return EINVAL
    if not is_memory(el2, page << shape[PAGE_SHIFT], (page + count) << shape[PAGE_SHIFT]):
        return EINVAL
    status = u64(OK)
    at = page
    while at < page + count:
        state = host_state(el2, at)
        shares = share_count(el2, at)
        if hyp_state(el2, at) != NOPAGE or (state != OWNED and (state != SHARED_OWNED or shares == 0)):
            return EPERM
        if shares >= load_relaxed(el2, MAX_SHARES):
            status = EBUSY
        at += ONE
    return status


@compiled(nogil=True)
def host_share_guest(hyp: Hyp, guest: Words, handle: U64, page: U64, gfn: U64, count: U64) -> U64:
    """The host lets a guest use one page, or a block of them, at ``gfn``; the same page as often as MAX_SHARES.

    OK; ENOENT, EINVAL: no such VM, dying, no memory, no page or aligned block; ERANGE; EPERM unless guest NOPAGE, and
    host OWNED or shared with guests; EBUSY: shared too often; ENOMEM. O(count).
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    if take_pages(hyp, shape[LAST_LEVEL] - shape[START_LEVEL]) != OK:
        return ENOMEM
    lock_both(host, guest)
    status = check_live(el2, handle)
    if status == OK:
        status = _may_share(shape, el2, page, gfn, count)
    if status == OK:
        status = is_empty(guest_table, gfn, count)
    if status == OK:
        at = page
        while at < page + count:
            set_host_state(shape, el2, at, SHARED_OWNED)
            word = page_word(el2, at)
            store_relaxed(el2, word, load_relaxed(el2, word) + (ONE << SHARE_SHIFT))
            at += ONE
        count_pages(el2, handle, BORROWED_PAGES, count, u64(0))
        status = map_guest(guest_table, gfn, page, count, load_relaxed(el2, GUEST_BORROWED))
    unlock_both(host, guest)
    return status


@compiled(nogil=True)
def host_unshare_guest(hyp: Hyp, guest: Words, handle: U64, gfn: U64, count: U64) -> U64:
    """The host ends a guest's use of what it shared at ``gfn``; also with a dying VM.

    OK; ENOENT: no such VM, or nothing there; ERANGE; E2BIG: the guest's leaf is not of ``count`` pages; EINVAL: inside
    a block; EPERM unless the guest borrowed it. O(count).
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    lock_both(host, guest)
    status = u64(ENOENT)
    if vm_state(el2, handle) != VM_NONE:
        status = guest_leaf(guest_table, gfn)
    size = ONE
    if status == E2BIG:
        size = ONE << (shape[STRIDE] * (shape[LAST_LEVEL] - desk[FIND + ONE]))
        status = u64(OK)
    if status == OK:
        page = output_address(shape, desk[FIND]) >> shape[PAGE_SHIFT]
        if size != count:
            status = E2BIG
        elif gfn & (count - ONE) != 0:
            status = EINVAL
        elif guest_state(shape, el2, desk[FIND]) != SHARED_BORROWED:
            status = EPERM
        else:
            to = shape[PAGE_SHIFT]
            unmap_range(guest_table, gfn << to, count << to, u64(0))
            at = page
            while at < page + count:
                word = page_word(el2, at)
                store_relaxed(el2, word, wrapping(load_relaxed(el2, word) - (ONE << SHARE_SHIFT)))
                if share_count(el2, at) == 0:
                    set_host_state(shape, el2, at, OWNED)
                at += ONE
            count_pages(el2, handle, BORROWED_PAGES, u64(0), count)
    unlock_both(host, guest)
    return status


@compiled(nogil=True)
def guest_share_host(hyp: Hyp, guest: Words, handle: U64, gfn: U64) -> U64:
    """A guest lets the host use a page of its own.

    OK; ENOENT, EINVAL: no such VM, nothing there, dying; ERANGE; E2BIG: a block; EHWPOISON: the page was taken from it;
    EPERM unless guest OWNED, host NOPAGE. O(levels).
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    host_table = Table(shape, pool, pages, host, desk)
    lock_both(host, guest)
    status = check_live(el2, handle)
    if status == OK:
        status = guest_leaf(guest_table, gfn)
    if status == OK:
        page = output_address(shape, desk[FIND]) >> shape[PAGE_SHIFT]
        if guest_state(shape, el2, desk[FIND]) != OWNED or host_state(el2, page) != NOPAGE:
            status = EPERM
        else:
            map_guest(guest_table, gfn, page, ONE, load_relaxed(el2, GUEST_SHARED))
            map_host_page(host_table, page, load_relaxed(el2, HOST_BORROWED))
            set_host_state(shape, el2, page, SHARED_BORROWED)
    unlock_both(host, guest)
    return status


@compiled(nogil=True)
def guest_unshare_host(hyp: Hyp, guest: Words, handle: U64, gfn: U64) -> U64:
    """A guest ends that, and has the page alone. As ``guest_share_host``; EPERM unless it shared the page."""
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    lock_both(host, guest)
    status = check_live(el2, handle)
    if status == OK:
        status = guest_leaf(guest_table, gfn)
    if status == OK:
        page = output_address(shape, desk[FIND]) >> shape[PAGE_SHIFT]
        if guest_state(shape, el2, desk[FIND]) != SHARED_OWNED or host_state(el2, page) != SHARED_BORROWED:
            status = EPERM
        else:
            mark_host_page(hyp, page, guest_mark(shape, handle, gfn))
            set_host_state(shape, el2, page, NOPAGE)
            map_guest(guest_table, gfn, page, ONE, load_relaxed(el2, GUEST_OWNED))
    unlock_both(host, guest)
    return status
