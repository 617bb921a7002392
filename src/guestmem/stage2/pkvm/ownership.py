"""Words of pages and blocks: reading and setting states, what is memory, which pages a block lacks.

Linux: ``get_host_state()``, ``set_host_state()``, ``range_is_memory()``, ``arch/arm64/kvm/hyp/nvhe/mem_protect.c``.
All functions want the host's lock, setters exclusively.
"""

from __future__ import annotations

from ...atomics import load_relaxed, store_relaxed
from ...compiled import ONE, TWO, U64, Own, Words, compiled, wrapping
from ..layout import IPA_END, LAST_LEVEL, MIN_BLOCK_LEVEL, OWNER_SHIFT, OWNER_TYPE, STRIDE
from .layout import (
    AWAY_BASE,
    FIRST_PAGE,
    HYP_SHIFT,
    NOPAGE,
    OWNER_GUEST,
    PAGE_BASE,
    REGION_BASE,
    REGIONS,
    SHARE_MASK,
    SHARE_SHIFT,
    SHARED_OWNED,
    STATE_MASK,
)

__all__ = [
    "away",
    "away_word",
    "guest_mark",
    "host_state",
    "hyp_state",
    "is_memory",
    "is_uniform",
    "page_word",
    "pages_are",
    "set_host_state",
    "set_hyp_state",
    "share_count",
]


@compiled
def page_word(el2: Words, page: U64) -> U64:
    """Index of the word of page number ``page``, which lies between FIRST_PAGE and LAST_PAGE."""
    return load_relaxed(el2, PAGE_BASE) + (page - load_relaxed(el2, FIRST_PAGE))


@compiled
def away_word(shape: Own, el2: Words, page: U64, level: U64) -> U64:
    """Index of the counter of the block at ``level`` (1 or 2) that a page lies in."""
    shift = shape[STRIDE] * (shape[LAST_LEVEL] - level)
    return load_relaxed(el2, AWAY_BASE + level) + ((page >> shift) - (load_relaxed(el2, FIRST_PAGE) >> shift))


@compiled
def away(shape: Own, el2: Words, page: U64, level: U64) -> U64:
    """How many pages of that block are not the host's own."""
    return load_relaxed(el2, away_word(shape, el2, page, level))


@compiled
def host_state(el2: Words, page: U64) -> U64:
    """The host's state of a page of memory."""
    return load_relaxed(el2, page_word(el2, page)) & STATE_MASK


@compiled
def hyp_state(el2: Words, page: U64) -> U64:
    """The hypervisor's state of a page of memory."""
    return ((load_relaxed(el2, page_word(el2, page)) >> HYP_SHIFT) & STATE_MASK) ^ NOPAGE


@compiled
def share_count(el2: Words, page: U64) -> U64:
    """In how many places guests borrow the page from the host."""
    return (load_relaxed(el2, page_word(el2, page)) >> SHARE_SHIFT) & SHARE_MASK


@compiled
def set_hyp_state(el2: Words, page: U64, state: U64) -> None:
    """Set the hypervisor's state."""
    word = page_word(el2, page)
    store_relaxed(el2, word, (load_relaxed(el2, word) & ~(STATE_MASK << HYP_SHIFT)) | ((state ^ NOPAGE) << HYP_SHIFT))


@compiled
def set_host_state(shape: Own, el2: Words, page: U64, state: U64) -> None:
    """Set the host's state, and count the page in its blocks if it is no longer the host's own, or is again. O(1)."""
    word = page_word(el2, page)
    old = load_relaxed(el2, word)
    store_relaxed(el2, word, (old & ~STATE_MASK) | state)
    was_away = old & STATE_MASK > SHARED_OWNED
    is_away = state > SHARED_OWNED
    if was_away == is_away:
        return
    level = shape[LAST_LEVEL] - ONE
    while level >= shape[MIN_BLOCK_LEVEL] and level >= 1:
        word = away_word(shape, el2, page, level)
        count = load_relaxed(el2, word)
        store_relaxed(el2, word, count + ONE if is_away else wrapping(count - ONE))
        level -= ONE


@compiled
def is_memory(el2: Words, start: U64, end: U64) -> bool:
    """Whether ``[start, end)``, addresses, lies in one region of memory. O(regions)."""
    at = load_relaxed(el2, REGION_BASE)
    last = at + (load_relaxed(el2, REGIONS) << 1)
    while at < last:
        if start < load_relaxed(el2, at + ONE):
            return start >= load_relaxed(el2, at) and end <= load_relaxed(el2, at + ONE)
        at += TWO
    return False


@compiled
def is_uniform(shape: Own, el2: Words, start: U64, end: U64) -> bool:
    """Whether ``[start, end)`` is memory of one region, or no memory at all, and within the input. O(regions)."""
    if end > shape[IPA_END]:
        return False
    at = load_relaxed(el2, REGION_BASE)
    last = at + (load_relaxed(el2, REGIONS) << 1)
    while at < last:
        low = load_relaxed(el2, at)
        high = load_relaxed(el2, at + ONE)
        if start < high:
            return end <= low or (start >= low and end <= high)
        at += TWO
    return True


@compiled
def guest_mark(shape: Own, handle: U64, gfn: U64) -> U64:
    """The host's invalid entry for a page that a guest owns at ``gfn``."""
    return shape[OWNER_TYPE] | (((gfn << 19) | (handle << 3) | OWNER_GUEST) << shape[OWNER_SHIFT])


@compiled
def pages_are(el2: Words, page: U64, end: U64, host: U64, hyp: U64) -> bool:
    """Whether all of ``[page, end)`` have these states. O(pages)."""
    wanted = host | ((hyp ^ NOPAGE) << HYP_SHIFT)
    mask = STATE_MASK | (STATE_MASK << HYP_SHIFT)
    while page < end:
        if load_relaxed(el2, page_word(el2, page)) & mask != wanted:
            return False
        page += ONE
    return True
