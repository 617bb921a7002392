"""Memory of table pages: one aligned run of host memory below 2**40, and a side array with a line and a bit a page.

Descriptors hold real addresses in it, so an emulator, another process or a plain walker can follow them. A pool with a
chosen base is ordinary words that only pretend to lie there: for the interpreted form, where addresses must not change
from run to run. Idea: Linux ``kvm_mmu_memory_cache`` (topped up before any lock) over a bitmap of free pages.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterable
from typing import cast

from ..atomics import load_acquire, peek, poke, store_relaxed
from ..compiled import INTERPRETED, U64, Own, Words, compiled, own, u64, words
from ..errors import InvariantError, TablePagesError, UsageError
from ..low_memory import LOW_END, low_memory
from .free_list import MAX_RUN, first_word, format_free_list, give_run, page_is_free, take_run
from .layout import CACHE, CACHE_CAPACITY, CACHE_COUNT, COUNT, FREE, GIVEN, HELD, LIMIT, PAGE_WORDS, PAGES, STATE, TAKEN

__all__ = ["Pool"]

_MAX_PAGES = 1 << 24


@compiled
def _count_free(pages: Words) -> U64:
    word = first_word(pages)
    end = word + (load_acquire(pages, LIMIT) + u64(63)) // u64(64)
    count = u64(0)
    while word < end:
        bits = load_acquire(pages, word)
        while bits != 0:
            bits = bits & (bits - u64(1))
            count += u64(1)
        word += u64(1)
    return count


@compiled
def _clear(pool: Words, word: U64, count: U64) -> None:
    end = word + count
    while word < end:
        store_relaxed(pool, word, u64(0))
        word += u64(1)


def _as_words(memory: memoryview) -> Words:
    if INTERPRETED:
        return Words(memory)  # type: ignore[arg-type] # a writable buffer, as mmap is
    import numpy as np

    return cast("Words", np.frombuffer(memory, np.uint64))


class Pool:
    """``limit`` table pages of ``1 << page_shift`` bytes.

    ``words`` is what compiled functions take as ``pool``, ``pages`` the side array. ``base``: the address of the first
    page; given, it must be aligned to 16 pages, and the words only pretend to lie there (``fd`` is None).

    >>> pool = Pool(64)
    >>> page = pool.alloc()
    >>> page % 0x1000, page + 0x1000 <= 1 << 40, pool.used
    (0, True, 1)
    >>> pool.store(page, 5, 0x1234), pool.load(page, 5)
    (None, 4660)
    >>> pool.free(page)
    >>> pool.check(held=[])
    """

    def __init__(self, limit: int, page_shift: int = 12, *, base: int | None = None) -> None:
        if not 1 <= limit <= _MAX_PAGES:
            raise UsageError(f"limit: {limit} table pages are not in 1..{_MAX_PAGES}")
        if page_shift not in {12, 14, 16}:
            raise UsageError(f"page_shift: {page_shift} is not 12, 14 or 16")
        self.limit, self.page_shift, self.page_size = limit, page_shift, 1 << page_shift
        self._run_words = int(MAX_RUN) << (page_shift - 3)
        self.fd: int | None = None
        """File descriptor of the memory, for other processes."""
        if base is None:
            self.base, memory, self.fd = low_memory(limit << page_shift, name="guestmem-tables")
            self.words = _as_words(memory)
            self._close = weakref.finalize(self, os.close, self.fd)
        else:
            alignment = int(MAX_RUN) << page_shift
            if base % alignment or not 0 <= base <= LOW_END - (limit << page_shift):
                raise UsageError(
                    f"base: {base:#x} is not a multiple of {alignment:#x} with {limit} pages below {LOW_END:#x}"
                )
            self.base, self.words = base, words(limit << (page_shift - 3))
        self.pages = words(int(PAGES) + int(PAGE_WORDS) * limit + -(-limit // 64))
        format_free_list(self.pages, limit)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.base <= address < self.base + (self.limit << self.page_shift)

    def page_of(self, address: int) -> int:
        """Number of the page at ``address``; UsageError if none starts there."""
        if address not in self or address % self.page_size:
            raise UsageError(f"address: {address:#x} is not the start of a table page in {self}")
        return (address - self.base) >> self.page_shift

    def address_of(self, page: int) -> int:
        """Address of page ``page``."""
        return self.base + (page << self.page_shift)

    def alloc(self, count: int = 1) -> int:
        """Address of ``count`` zeroed pages in a row, aligned to their size; TablePagesError if there are none.

        ``count``: a power of two up to 16. O(pages / 64 + count * entries).
        """
        if count not in {1, 2, 4, 8, 16}:
            raise UsageError(f"count: {count} is not 1, 2, 4, 8 or 16")
        first = take_run(self.pages, count)
        if not first:
            raise TablePagesError(
                errno.ENOMEM,
                f"table pages: no {count} in a row are free, {self.free_pages} of {self.limit} pages are free in all",
            )
        page = int(first) - 1
        _clear(self.words, page << (self.page_shift - 3), count << (self.page_shift - 3))
        return self.address_of(page)

    def free(self, address: int, count: int = 1) -> None:
        """Give pages of ``alloc`` back; InvariantError if one of them is free already. O(count)."""
        page = self.page_of(address)
        if count not in {1, 2, 4, 8, 16} or page % count or page + count > self.limit:
            raise UsageError(f"count: {count} pages from {address:#x} cannot come from one alloc of {self}")
        if not give_run(self.pages, page, count):
            raise InvariantError(f"pool: one of {count} table pages at {address:#x} was free already")

    def desk(self, capacity: int) -> Own:
        """Words with room for a cache of ``capacity`` pages: for ``cache_topup`` and its kin, where no walker is."""
        made = own(int(CACHE) + capacity)
        made[int(CACHE_CAPACITY)] = capacity
        return made

    def cached(self, desk: Own) -> list[int]:
        """Addresses of the pages in a desk's cache."""
        return [self.address_of(int(desk[int(CACHE) + at])) for at in range(int(desk[int(CACHE_COUNT)]))]

    def load(self, table: int, index: int) -> int:
        """Entry ``index`` of the table page, or root, at ``table``."""
        return int(peek(self.words, self._word(table, index)))

    def store(self, table: int, index: int, word: int) -> None:
        """Write an entry; only where no walker is."""
        poke(self.words, self._word(table, index), word)

    def _word(self, table: int, index: int) -> int:
        start, words_ = table - self.base, self.limit << (self.page_shift - 3)
        word = (start >> 3) + index
        if start & (self.page_size - 1) or not 0 <= start >> 3 <= word < words_ or index >= self._run_words:
            self.page_of(table)
            raise UsageError(f"index: {index} from {table:#x} leaves {self}")
        return word

    def is_free(self, address: int) -> bool:
        """Whether nobody has the page; of the moment."""
        return bool(page_is_free(self.pages, self.page_of(address)))

    @property
    def used(self) -> int:
        """Pages taken: in tables, in caches, or waiting for their grace period; of the moment. O(1)."""
        given = peek(self.pages, int(GIVEN))  # first: each page given was taken before
        return int(peek(self.pages, int(TAKEN)) - given)

    @property
    def free_pages(self) -> int:
        """Pages that can be taken; of the moment. O(pages / 64)."""
        return int(_count_free(self.pages))

    def check(self, held: Iterable[int] | None = None) -> None:
        """Raise InvariantError unless the books are sound; while nobody takes or gives. O(pages).

        ``held``: addresses of all pages that somebody has; then each page is either free or held once, never both,
        never neither (leaked).
        """
        limit, first = self.limit, int(first_word(self.pages))
        if peek(self.pages, int(LIMIT)) != limit:
            raise InvariantError(f"pool: limit is {peek(self.pages, int(LIMIT))}, not {limit}")
        free = {
            at * 64 + bit
            for at in range(-(-limit // 64))
            for bit, value in enumerate(reversed(f"{peek(self.pages, first + at):064b}"))
            if value == "1"
        }
        if free and max(free) >= limit:
            raise InvariantError(f"pool: page {max(free)} is marked free, but there are {limit}")
        if self.used != limit - len(free):
            raise InvariantError(f"pool: {self.used} pages taken and not given, but {limit - len(free)} are not free")
        for page in sorted(free):
            line = int(PAGES) + int(PAGE_WORDS) * page
            for name, word, right in (("state", STATE, FREE), ("count", COUNT, 0), ("references", HELD, 0)):
                if (value := peek(self.pages, line + int(word))) != right:
                    raise InvariantError(f"pool: free page {self.address_of(page):#x} has {name} {value}, not {right}")
        if held is not None:
            self._check_held(free, [self.page_of(address) for address in held])

    def _check_held(self, free: set[int], held: list[int]) -> None:
        for page in held:
            if page in free:
                raise InvariantError(f"pool: table page {self.address_of(page):#x} is used, but was freed")
        if len(set(held)) < len(held):
            twice = next(page for page in held if held.count(page) > 1)
            raise InvariantError(f"pool: table page {self.address_of(twice):#x} is used twice")
        leaked = set(range(self.limit)) - free - set(held)
        if leaked:
            raise InvariantError(f"pool: {len(leaked)} table pages leaked, the first {self.address_of(min(leaked)):#x}")

    def close(self) -> None:
        """Close the file descriptor. The memory goes when nobody looks at it any more."""
        if self.fd is not None:
            self._close()
            self.fd = None

    def __repr__(self) -> str:
        end = self.base + (self.limit << self.page_shift)
        return f"Pool [{self.base:#x}, {end:#x}): {self.limit} pages of {self.page_size:#x}"
