"""Which table pages are free: one bit a page, taken by compare-and-exchange, given back by one fetch_or; caches a vCPU.

A bitmap, not a list: a word has no ABA, one exchange takes several pages, runs for concatenated roots are found in it,
and who gives back a page that is free already sees it. Vcpu caches are filled before any lock is taken, as
``kvm_mmu_topup_memory_cache()`` does (Linux ``virt/kvm/kvm_main.c``).

The bits stand after the lines of the pages, bit n of word ``first_word`` + n / 64: page n is free. Pages are handed out
zeroed, with count and references 0.
"""

from __future__ import annotations

from ..atomics import compare_exchange, fetch_add, fetch_or, load_relaxed, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .layout import (
    CACHE,
    CACHE_CAPACITY,
    CACHE_COUNT,
    CACHED,
    COUNT,
    ENOMEM,
    FREE,
    GIVEN,
    LIMIT,
    OK,
    PAGE_SHIFT,
    PAGE_WORDS,
    PAGES,
    STATE,
    STRIDE,
    TAKEN,
)

__all__ = [
    "MAX_RUN",
    "cache_drain",
    "cache_put",
    "cache_take",
    "cache_topup",
    "first_word",
    "format_free_list",
    "give_run",
    "page_give",
    "page_is_free",
    "take_run",
]

MAX_RUN = const(16)
"""Longest run of pages: the concatenated root."""
_WORD = const(64)
_ALL = const((1 << 64) - 1)


@compiled
def first_word(pages: Words) -> U64:
    """Index of the first word of bits."""
    return PAGES + PAGE_WORDS * load_relaxed(pages, LIMIT)


@compiled
def _words_of(pages: Words) -> U64:
    return (load_relaxed(pages, LIMIT) + _WORD - ONE) // _WORD


@compiled
def format_free_list(pages: Words, count: U64) -> None:
    """Make ``count`` pages of a zeroed array free. Before anybody else: relaxed is enough."""
    store_relaxed(pages, LIMIT, count)
    word = first_word(pages)
    left = count
    while left >= 64:
        store_relaxed(pages, word, _ALL)
        word += ONE
        left -= _WORD
    if left > 0:
        store_relaxed(pages, word, (ONE << left) - ONE)


@compiled
def page_is_free(pages: Words, page: U64) -> bool:
    """Whether nobody has the page; of the moment."""
    return (load_relaxed(pages, first_word(pages) + (page >> 6)) >> (page & u64(63))) & ONE == 1


@compiled
def _lowest(bits: U64) -> U64:
    """Index of the lowest bit of a word that is not 0."""
    at = u64(0)
    step = u64(32)
    while step > 0:
        if (bits >> at) & ((ONE << step) - ONE) == 0:
            at += step
        step = step >> 1
    return at


@compiled
def _zero(pool: Words, word: U64, count: U64) -> None:
    """Relaxed: the page becomes reachable by a release."""
    end = word + count
    while word < end:
        store_relaxed(pool, word, u64(0))
        word += ONE


@compiled
def take_run(pages: Words, count: U64) -> U64:
    """Take ``count`` pages in a row (a power of two up to MAX_RUN, aligned to itself): first page + 1, 0 if none.

    Not zeroed, state not changed. O(pages / 64), lock-free: it starts again only when somebody else took or gave.
    """
    first, words = first_word(pages), _words_of(pages)
    run = (ONE << count) - ONE
    word = u64(0)
    while word < words:
        free = load_relaxed(pages, first + word)
        shift = u64(0)
        while shift < 64:
            while (free >> shift) & run == run:
                seen = compare_exchange(pages, first + word, free, free ^ (run << shift))
                if seen == free:
                    fetch_add(pages, TAKEN, count)
                    return (word << 6) + shift + ONE
                free = seen
            shift += count
        word += ONE
    return u64(0)


@compiled
def give_run(pages: Words, page: U64, count: U64) -> bool:
    """Give ``count`` pages (as ``take_run``) back; False if one of them was free already. O(count).

    Their lines' state and count are cleared; nobody may hold a reference (HELD is 0).
    """
    line = PAGES + PAGE_WORDS * page
    end = line + PAGE_WORDS * count
    while line < end:
        store_relaxed(pages, line + STATE, FREE)
        store_relaxed(pages, line + COUNT, u64(0))
        line += PAGE_WORDS
    run = ((ONE << count) - ONE) << (page & u64(63))
    was = fetch_or(pages, first_word(pages) + (page >> 6), run)
    fetch_add(pages, GIVEN, count)
    return was & run == 0


@compiled
def page_give(pages: Words, page: U64) -> bool:
    """Give one page back; False if it was free already. O(1)."""
    return give_run(pages, page, ONE)


@compiled
def cache_topup(shape: Own, pool: Words, pages: Words, desk: Own, least: U64) -> U64:
    """Unless the desk's cache holds ``least`` pages, fill it up: OK, or ENOMEM if it still holds fewer.

    Takes no lock and is called before any. Pages are zeroed here. What was found stays in the cache, also with ENOMEM.
    O(1) if there is nothing to do, else O(pages / 64 + entries taken).
    """
    held = desk[CACHE_COUNT]
    if held >= least:
        return OK
    capacity = desk[CACHE_CAPACITY]
    first, words = first_word(pages), _words_of(pages)
    word = u64(0)
    while word < words and held < capacity:
        free = load_relaxed(pages, first + word)
        rest = free
        wanted = capacity - held
        while rest != 0 and wanted > 0:
            rest = rest & (rest - ONE)
            wanted -= ONE
        seen = free
        if rest != free:
            seen = compare_exchange(pages, first + word, free, rest)
        if seen != free:
            continue  # somebody took or gave: look at this word again
        taken = free ^ rest
        count = u64(0)
        while taken != 0:
            page = (word << 6) + _lowest(taken)
            taken = taken & (taken - ONE)
            store_relaxed(pages, PAGES + PAGE_WORDS * page + STATE, CACHED)
            _zero(pool, page << (shape[PAGE_SHIFT] - u64(3)), ONE << shape[STRIDE])
            desk[CACHE + held] = page
            held += ONE
            count += ONE
        if count > 0:
            fetch_add(pages, TAKEN, count)
        word += ONE
    desk[CACHE_COUNT] = held
    if held < least:
        return ENOMEM
    return OK


@compiled
def cache_take(desk: Own) -> U64:
    """A zeroed page from the cache, + 1; 0 if it is empty. O(1)."""
    held = desk[CACHE_COUNT]
    if held == 0:
        return u64(0)
    held -= ONE
    desk[CACHE_COUNT] = held
    return desk[CACHE + held] + ONE


@compiled
def cache_put(desk: Own, page: U64) -> None:
    """Put a page back that ``cache_take`` gave and nobody ever saw; its words must be 0. O(1)."""
    held = desk[CACHE_COUNT]
    desk[CACHE + held] = page
    desk[CACHE_COUNT] = held + ONE


@compiled
def cache_drain(pages: Words, desk: Own) -> bool:
    """Give all cached pages back; False if one was free already. O(cache)."""
    sound = True
    while desk[CACHE_COUNT] > 0:
        sound = page_give(pages, cache_take(desk) - ONE) and sound
    return sound
