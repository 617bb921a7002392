"""What ``Pkvm.check()`` verifies in words: tables, states and counters agree, page by page. Compiled.

For every page of memory exactly one of host, hypervisor and one guest owns it; who borrows does so from an owner that
shares; nobody maps a page that it has not. While no CPU is inside. Idea: ``assert_page_state()``, Linux
``arch/arm64/kvm/hyp/nvhe/mem_protect.c``, and the ghost specification of "Ghost in the Android Shell" (2024).
"""

from __future__ import annotations

from ...atomics import load_relaxed
from ...compiled import ONE, U64, Own, Words, compiled, const, u64
from ..entry import level_shift, output_address
from ..layout import (
    ADDRESS,
    FIND,
    IPA_END,
    LAST_LEVEL,
    LEAF,
    LEVEL,
    MIN_BLOCK_LEVEL,
    OK,
    OLD,
    OWNER_SHIFT,
    OWNER_TYPE,
    PAGE_SHIFT,
    PERMISSION_MASK,
    SOFTWARE_MASK,
    STRIDE,
    VALID,
)
from ..walk import DONE, lookup, walk_begin, walk_step
from ..words import Table
from .guest import guest_state
from .layout import (
    BORROWED_PAGES,
    FIRST_PAGE,
    HOST_BORROWED,
    HOST_MEMORY,
    HOST_MMIO,
    LAST_PAGE,
    NOPAGE,
    OWNED,
    OWNED_PAGES,
    OWNER_HYP,
    POISON,
    SHARED_BORROWED,
    SHARED_OWNED,
    VM_BASE,
)
from .ownership import (
    away,
    guest_mark,
    host_state,
    hyp_state,
    is_memory,
    is_uniform,
    page_word,
    share_count,
)
from .words import Hyp

__all__ = ["BROKEN", "check_guest", "check_host", "check_pages"]

BROKEN = (
    "",
    "a guest maps what is no memory",
    "a page that two own",
    "a page of a guest, but the host's entry does not say so",
    "a page that a guest borrows, but the host does not share it",
    "a VM whose pages are not as many as it maps",
    "a leaf of the host that is no identity map",
    "a leaf of the host over memory and other addresses",
    "a leaf of the host with wrong rights, or state",
    "an owner's mark of the host where it has a page, or the wrong owner's",
    "a page whose owners are not exactly one",
    "a page that is shared with nobody, or with too many",
    "a page whose borrowers are not as many as its count",
    "a page that the host has not, but can reach or could fault in",
    "a block whose count of pages away is wrong",
    "a guest's invalid entry that is not poisoned",
)
"""What was found, by number."""

_OWNS = const(1)
_LENDS = const(2)
_USES_SHIFT = const(8)


@compiled(nogil=True)
def check_guest(hyp: Hyp, guest: Words, seen: Own, handle: U64) -> U64:
    """Verify a guest's table; 0, or which of BROKEN, with where in ``seen[0]``. O(entries + leaves * levels).

    ``seen``: a word, then a word a page of memory: bit 0 a guest owns it, bit 1 and shares it, from bit 8 on how often
    guests borrow it.
    """
    shape, pool, pages, host, desk, el2 = hyp
    guest_table = Table(shape, pool, pages, guest, desk)
    host_table = Table(shape, pool, pages, host, desk)
    status = walk_begin(guest_table, u64(0), shape[IPA_END], LEAF)
    owned = u64(0)
    borrowed = u64(0)
    while status == OK and walk_step(guest_table) != DONE:
        old = desk[OLD]
        if old == 0:
            continue
        seen[0] = desk[ADDRESS]
        if old & shape[VALID] == 0:
            if old != POISON:
                return u64(15)
            continue
        start = output_address(shape, old)
        end = start + (ONE << level_shift(shape, desk[LEVEL]))
        if not is_memory(el2, start, end):
            return u64(1)
        state = guest_state(shape, el2, old)
        page = start >> shape[PAGE_SHIFT]
        last = end >> shape[PAGE_SHIFT]
        gfn = desk[ADDRESS] >> shape[PAGE_SHIFT]
        while page < last:
            at = ONE + page - load_relaxed(el2, FIRST_PAGE)
            if state == SHARED_BORROWED:
                borrowed += ONE
                seen[at] += ONE << _USES_SHIFT
                if host_state(el2, page) != SHARED_OWNED:
                    return u64(4)
            else:
                owned += ONE
                if seen[at] & _OWNS != 0:
                    return u64(2)
                seen[at] |= _OWNS
                lookup(host_table, page << shape[PAGE_SHIFT])
                if state == SHARED_OWNED:
                    seen[at] |= _LENDS
                    if host_state(el2, page) != SHARED_BORROWED:
                        return u64(3)
                elif host_state(el2, page) != NOPAGE or desk[FIND] != guest_mark(shape, handle, gfn):
                    return u64(3)
            page += ONE
            gfn += ONE
    vm = load_relaxed(el2, VM_BASE) + (handle << 3)
    seen[0] = handle
    if load_relaxed(el2, vm + OWNED_PAGES) != owned or load_relaxed(el2, vm + BORROWED_PAGES) != borrowed:
        return u64(5)
    return u64(0)


@compiled(nogil=True)
def check_host(hyp: Hyp, seen: Own) -> U64:
    """Verify the host's leaves and marks, in order of address; 0, or which of BROKEN. O(entries + pages)."""
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    status = walk_begin(host_table, u64(0), shape[IPA_END], LEAF)
    bits = shape[PERMISSION_MASK] | shape[SOFTWARE_MASK]
    hyp_mark = shape[OWNER_TYPE] | (OWNER_HYP << shape[OWNER_SHIFT])
    while status == OK and walk_step(host_table) != DONE:
        old = desk[OLD]
        if old == 0:
            continue
        start = desk[ADDRESS]
        seen[0] = start
        end = start + (ONE << level_shift(shape, desk[LEVEL]))
        memory = is_memory(el2, start, end)
        page = start >> shape[PAGE_SHIFT]
        if old & shape[VALID] == 0:
            if desk[LEVEL] != shape[LAST_LEVEL] or not memory or host_state(el2, page) != NOPAGE:
                return u64(9)
            if (old == hyp_mark) != (hyp_state(el2, page) == OWNED):
                return u64(9)
            continue
        if output_address(shape, old) != start:
            return u64(6)
        if not is_uniform(shape, el2, start, end):
            return u64(7)
        attributes = HOST_MEMORY if memory else HOST_MMIO
        if memory and host_state(el2, page) == SHARED_BORROWED:
            attributes = HOST_BORROWED
        if (old ^ load_relaxed(el2, attributes)) & bits != 0:
            return u64(8)
        last = end >> shape[PAGE_SHIFT]
        while memory and page < last:
            state = host_state(el2, page)
            if state == NOPAGE or (state == SHARED_BORROWED and desk[LEVEL] != shape[LAST_LEVEL]):
                seen[0] = page << shape[PAGE_SHIFT]
                return u64(13)
            page += ONE
    return u64(0)


@compiled(nogil=True)
def check_pages(hyp: Hyp, seen: Own) -> U64:
    """Verify every page's states against ``seen``, what guests map, and the counters of blocks. O(pages * levels)."""
    shape, pool, pages, host, desk, el2 = hyp
    host_table = Table(shape, pool, pages, host, desk)
    first = load_relaxed(el2, FIRST_PAGE)
    last = load_relaxed(el2, LAST_PAGE)
    page = first
    while page < last:
        address = page << shape[PAGE_SHIFT]
        seen[0] = address
        mine = host_state(el2, page)
        its = hyp_state(el2, page)
        found = seen[ONE + page - first]
        guest_owns = found & _OWNS != 0
        uses = found >> _USES_SHIFT
        if not is_memory(el2, address, address + (ONE << shape[PAGE_SHIFT])):
            if load_relaxed(el2, page_word(el2, page)) != 0 or found != 0:
                return u64(1)
            page += ONE
            continue
        host_owns = mine < SHARED_BORROWED
        hyp_owns = its < SHARED_BORROWED
        if (host_owns and (hyp_owns or guest_owns)) or (hyp_owns and guest_owns):
            return u64(2)
        if not (host_owns or hyp_owns or guest_owns):
            return u64(10)
        if share_count(el2, page) != uses:
            return u64(12)
        # Who shares does so with somebody, and only one kind of them; who borrows does from an owner that shares.
        if mine == SHARED_OWNED:
            if (its == SHARED_BORROWED) == (uses != 0):
                return u64(11)
        elif its == SHARED_BORROWED or uses != 0:
            return u64(11)
        if (mine == SHARED_BORROWED) != (found & _LENDS != 0):
            return u64(11)
        if mine > SHARED_OWNED:
            # Not lazily absent: an entry says whose it is, or the next fault would give it to the host.
            lookup(host_table, address)
            descriptor = desk[FIND]
            if descriptor == 0 or (descriptor & shape[VALID] != 0) != (mine == SHARED_BORROWED):
                return u64(13)
        page += ONE
    return _check_away(shape, el2, seen)


@compiled
def _check_away(shape: Own, el2: Words, seen: Own) -> U64:
    """Count the pages that the host has not as its own, a block at a time."""
    level = shape[LAST_LEVEL] - ONE
    last = load_relaxed(el2, LAST_PAGE)
    while level >= shape[MIN_BLOCK_LEVEL] and level >= 1:
        page = load_relaxed(el2, FIRST_PAGE)
        block = ONE << (shape[STRIDE] * (shape[LAST_LEVEL] - level))
        while page < last:
            end = (page & ~(block - ONE)) + block
            seen[0] = page << shape[PAGE_SHIFT]
            expected = away(shape, el2, page, level)
            counted = u64(0)
            while page < end:
                if page < last and host_state(el2, page) > SHARED_OWNED:
                    counted += ONE
                page += ONE
            if counted != expected:
                return u64(14)
        level -= ONE
    return u64(0)
