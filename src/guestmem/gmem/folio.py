"""Folios: pages that are there, who holds references to them, and huge ones split and joined.

Presence and order change under the invalidate lock for writing, but for the first page of order 0, which any fault may
add; references come and go at any time. Source: Linux ``include/linux/page_ref.h``, ``mm/gup.c`` (``try_get_folio``,
``gup_fast_pte_range``); splitting and joining as in "1G page support for guest_memfd", linux-mm, May 2025.
"""

from __future__ import annotations

from ..atomics import (
    compare_exchange,
    exchange,
    fence,
    fetch_add,
    fetch_and,
    fetch_or,
    load_acquire,
    load_relaxed,
    store_relaxed,
)
from ..compiled import U64, Words, compiled, const, u64
from ..rcu import srcu_synchronize
from .layout import (
    FOLIO,
    HOST_TLB,
    HOSTS,
    JOINS,
    MAPPED,
    NONE,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGES,
    POISONED,
    PRESENT,
    PTE,
    REFS,
    SPLITS,
    TAIL,
    TYPED,
    UPTODATE,
)

__all__ = [
    "folio_create",
    "folio_drop",
    "folio_head",
    "folio_poison",
    "folio_put",
    "folio_try_get",
    "folios_drop",
    "folios_fill",
    "folios_in_use",
    "folios_join",
    "folios_poisoned",
    "folios_present",
    "folios_split",
    "unmap_host",
]

_ONE = const(1)
_MINUS_ONE = const((1 << 64) - 1)


@compiled(inline=True)
def page_word(index: U64) -> U64:
    """Where a page's words begin."""
    return PAGES + (index << 1)


@compiled
def folio_head(inode: Words, index: U64) -> U64:
    """The first page of the folio that page ``index`` is of."""
    word = load_acquire(inode, page_word(index) + FOLIO)
    if word & TAIL == 0:
        return index
    return index & ~((_ONE << ((word >> ORDER_SHIFT) & ORDER_MASK)) - _ONE)


@compiled
def folio_create(inode: Words, index: U64, order: U64) -> bool:
    """Let a folio of ``order`` be there from page ``index`` on, where there is none; whether it is this call's.

    Of order 0 under the lock for reading, of others for writing. References that pins of a page before it still have
    stay counted: the page then looks in use until they end, which is the safe side.
    """
    word = page_word(index) + FOLIO
    seen = load_relaxed(inode, word)
    while seen & PRESENT == 0:
        now = compare_exchange(inode, word, seen, seen | PRESENT | (order << ORDER_SHIFT))
        if now == seen:
            tail = _ONE
            while tail < _ONE << order:
                store_relaxed(inode, page_word(index + tail) + FOLIO, PRESENT | TAIL | (order << ORDER_SHIFT))
                tail += _ONE
            return True
        seen = now
    return False


@compiled
def folio_drop(inode: Words, index: U64) -> U64:
    """Take the folio that begins at ``index`` out of the file, under the lock for writing; references stay counted.

    Returns how many there are.
    """
    word = page_word(index) + FOLIO
    order = (load_relaxed(inode, word) >> ORDER_SHIFT) & ORDER_MASK
    tail = _ONE
    while tail < _ONE << order:
        store_relaxed(inode, page_word(index + tail) + FOLIO, u64(0))
        tail += _ONE
    return fetch_and(inode, word, REFS) & REFS


@compiled(nogil=True)
def folios_drop(inode: Words, first: U64, last: U64) -> None:
    """Take every folio that begins in pages [first, last] out of the file; none reaches out. Under the lock."""
    index = first
    while index <= last:
        order = (load_relaxed(inode, page_word(index) + FOLIO) >> ORDER_SHIFT) & ORDER_MASK
        folio_drop(inode, index)
        index += _ONE << order


@compiled(nogil=True)
def folios_fill(inode: Words, first: U64, last: U64) -> None:
    """Let every page of [first, last] be there, of order 0 where it is new. Under the lock for writing."""
    index = first
    while index <= last:
        folio_create(inode, index, u64(0))
        index += _ONE


@compiled(nogil=True)
def folios_present(inode: Words, first: U64, last: U64) -> U64:
    """How many pages of [first, last] are there."""
    present = u64(0)
    index = first
    while index <= last:
        if load_relaxed(inode, page_word(index) + FOLIO) & PRESENT != 0:
            present += _ONE
        index += _ONE
    return present


@compiled(nogil=True)
def folios_poisoned(inode: Words, first: U64, last: U64) -> U64:
    """The first page of [first, last] whose folio is poisoned; NONE."""
    index = first
    while index <= last:
        if load_relaxed(inode, page_word(folio_head(inode, index)) + FOLIO) & POISONED != 0:
            return index
        index += _ONE
    return NONE


@compiled
def folio_try_get(inode: Words, index: U64) -> bool:
    """Take a reference to the folio that begins at ``index``, unless nobody outside has one: it may be going."""
    word = page_word(index) + FOLIO
    seen = load_relaxed(inode, word)
    while seen & PRESENT != 0 and seen & REFS != 0:
        now = compare_exchange(inode, word, seen, seen + _ONE)
        if now == seen:
            return True
        seen = now
    return False


@compiled
def folio_put(inode: Words, index: U64) -> bool:
    """Drop a reference; whether it was the last of a folio that wants to hear of it (TYPED)."""
    seen = fetch_add(inode, page_word(index) + FOLIO, _MINUS_ONE)
    return seen & REFS == 1 and seen & TYPED != 0


@compiled
def folio_poison(inode: Words, index: U64) -> None:
    """Mark the folio that begins at ``index`` poisoned: it stays in the file, and nobody may have it."""
    fetch_or(inode, page_word(index) + FOLIO, POISONED)


@compiled(nogil=True)
def unmap_host(inode: Words, first: U64, last: U64) -> None:
    """Unmap pages [first, last] from the host, and wait until no host thread is in an access that saw them mapped.

    Under the lock for writing: no fault maps one meanwhile. A pin that saw a page mapped may hold a reference by now:
    who needs a page unused looks at references next (``folios_in_use``). The fence stands between this call's exchanges
    and that look; the other side is ``pin_page``: reference, fence, look at the entry.
    """
    if load_acquire(inode, MAPPED) != 0:
        index = first
        while index <= last:
            entry = page_word(index) + PTE
            if load_relaxed(inode, entry) != 0 and exchange(inode, entry, u64(0)) != 0:
                folio_put(inode, index)
                fetch_add(inode, MAPPED, _MINUS_ONE)
            index += _ONE
    fence()
    srcu_synchronize(inode, HOST_TLB, load_relaxed(inode, HOSTS))


@compiled(nogil=True)
def folios_in_use(inode: Words, first: U64, last: U64) -> U64:
    """The first of pages [first, last] whose folio somebody outside holds a reference to; NONE. Under the lock."""
    index = first
    while index <= last:
        head = folio_head(inode, index)
        word = load_acquire(inode, page_word(head) + FOLIO)
        if word & PRESENT != 0 and word & REFS != 0:
            return index
        index = head + (_ONE << ((word >> ORDER_SHIFT) & ORDER_MASK))
    return NONE


@compiled(nogil=True)
def folios_split(inode: Words, first: U64, last: U64) -> U64:
    """Split every huge folio that pages [first, last] touch to pages; returns how many. Under the lock for writing."""
    split = u64(0)
    index = first
    while index <= last:
        head = folio_head(inode, index)
        word = load_relaxed(inode, page_word(head) + FOLIO)
        order = (word >> ORDER_SHIFT) & ORDER_MASK
        if order != 0:
            flags = word & (PRESENT | UPTODATE | POISONED)
            page = u64(0)
            while page < _ONE << order:
                store_relaxed(inode, page_word(head + page) + FOLIO, flags)
                page += _ONE
            split += _ONE
        index = head + (_ONE << order)
    fetch_add(inode, SPLITS, split)
    return split


@compiled(nogil=True)
def folios_join(inode: Words, first: U64, last: U64, order: U64) -> U64:
    """Join pages to folios of ``order`` where whole ones lie in [first, last]; returns how many.

    Only where every page is there, of order 0, without references, unmapped and not poisoned. Under the lock for
    writing; the caller knows that no page there is shared.
    """
    joined = u64(0)
    pages = _ONE << order
    head = (first + pages - _ONE) & ~(pages - _ONE)
    while head <= last and last - head >= pages - _ONE:
        page = u64(0)
        while page < pages:
            word = load_relaxed(inode, page_word(head + page) + FOLIO)
            if word & ~UPTODATE != PRESENT or load_relaxed(inode, page_word(head + page) + PTE) != 0:
                break
            page += _ONE
        if page == pages:
            store_relaxed(inode, page_word(head) + FOLIO, PRESENT | UPTODATE | (order << ORDER_SHIFT))
            page = _ONE
            while page < pages:
                store_relaxed(inode, page_word(head + page) + FOLIO, PRESENT | TAIL | (order << ORDER_SHIFT))
                page += _ONE
            joined += _ONE
        head += pages
    fetch_add(inode, JOINS, joined)
    return joined
