"""What ``check()`` verifies in words: one table's tree, entry by entry, compiled; who holds which page, in Python.

Only while no walker is inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..atomics import load_acquire, load_relaxed, peek
from ..compiled import ONE, U64, Own, Words, compiled, const, own, u64
from ..errors import InvariantError
from ..rcu.srcu import srcu_expired
from ..units import U64_MAX
from .entry import is_counted, is_table, output_address, table_page
from .layout import (
    BLOCK_KIND,
    COUNT,
    DEAD,
    ENTRY_LEVEL,
    HELD,
    LAST_LEVEL,
    LIMIT,
    LINKED,
    LOCK_BASE,
    LOCKED,
    MIN_BLOCK_LEVEL,
    OUTPUT_END,
    PAGE_KIND,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGES,
    POOL_BASE,
    QUEUE_BASE,
    QUEUE_CAPACITY,
    QUEUE_WORDS,
    SRCU_BASE,
    STATE,
    STRIDE,
    TABLE_MASK,
    UNSOUND,
    VALID,
)

if TYPE_CHECKING:
    from .table_state import TableState

__all__ = ["BROKEN", "check_tree", "held_pages"]

BROKEN = (
    "",
    "a table outside the pool",
    "a table that is reached twice",
    "a table whose state is not LINKED",
    "a table whose level is not its parent's + 1",
    "a count of references that is not 1 + its entries",
    "a table whose links and walkers (HELD) are not 1",
    "a LOCKED entry, but nobody is inside",
    "a reserved descriptor",
    "a block where no block may stand",
    "an output address that is not aligned or is out of range",
)
"""What ``check_tree`` found, by its result."""

_THREE = const(3)
_FOUND, _WHERE = const(0), const(1)


@compiled(nogil=True)
def check_tree(
    shape: Own, pool: Words, pages: Words, marks: Own, root: U64, level: U64, entries: U64, state: U64
) -> U64:
    """Verify the tree under the table page ``root``, whose ``entries`` stand at ``level``; 0, or which of BROKEN.

    ``marks``: two words for what was found (value, page), then a word a page of the pool, in which each page reached
    gets 1 + the next page of the tree + 1; it was 0. ``state``: of the first page (LINKED; DEAD for one put aside).
    """
    to_words = shape[PAGE_SHIFT] - _THREE
    per_page = ONE << to_words
    last = shape[LAST_LEVEL]
    todo = u64(1)  # marks hold chains: a page waits with what is 1 + the one after it
    count = (entries + per_page - ONE) >> to_words
    page = root + count
    while page > root:
        page -= ONE
        if marks[page + _THREE] != 0:
            marks[_WHERE] = page
            return u64(2)
        marks[page + _THREE] = todo
        todo = page + u64(2)
    limit = load_relaxed(pages, LIMIT)
    while todo > 1:
        page = todo - u64(2)
        todo = marks[page + _THREE]
        line = PAGES + (page << 3)
        marks[_WHERE] = page
        in_root = page >= root and page < root + count
        at = level
        if not in_root:
            at = load_relaxed(pages, line + ENTRY_LEVEL) + ONE
        expected = state if in_root else LINKED
        marks[_FOUND] = load_relaxed(pages, line + STATE)
        if marks[_FOUND] != expected:
            return u64(3)
        references = ONE
        entry = page << to_words
        end = entry + (ONE << shape[STRIDE])
        if in_root and entries > ONE << shape[STRIDE]:
            end = entry + (entries if entries < per_page else per_page)
        while entry < end:
            descriptor = load_acquire(pool, entry)
            marks[_FOUND] = descriptor
            if is_counted(shape, descriptor):
                references += ONE
                if is_table(shape, descriptor, at):
                    address = output_address(shape, descriptor)
                    child = table_page(shape, descriptor)
                    if address < shape[POOL_BASE] or child >= limit:
                        return u64(1)
                    if marks[child + _THREE] != 0:
                        return u64(2)
                    if load_relaxed(pages, PAGES + (child << 3) + ENTRY_LEVEL) != at:
                        return u64(4)
                    marks[child + _THREE] = todo
                    todo = child + u64(2)
                elif descriptor & shape[VALID] != 0:
                    if at == last:
                        if descriptor & shape[PAGE_MASK] != shape[PAGE_KIND]:
                            return u64(8)
                    elif descriptor & shape[TABLE_MASK] != shape[BLOCK_KIND]:
                        return u64(8)
                    elif at < shape[MIN_BLOCK_LEVEL]:
                        return u64(9)
                    address = output_address(shape, descriptor)
                    granule = ONE << (shape[PAGE_SHIFT] + shape[STRIDE] * (last - at))
                    if address & (granule - ONE) != 0 or address >= shape[OUTPUT_END]:
                        return u64(10)
            elif descriptor == shape[LOCKED]:
                return u64(7)
            entry += ONE
        marks[_FOUND] = load_relaxed(pages, line + COUNT)
        if marks[_FOUND] != references:
            return u64(5)
        marks[_FOUND] = load_relaxed(pages, line + HELD)
        if marks[_FOUND] != 1:
            return u64(6)
    return u64(0)


def held_pages(table: TableState) -> list[int]:
    """Addresses of all pages of a table, its walkers' caches and queues. Raises InvariantError. O(pool).

    Verifies the table's tree and the trees that were put aside, and that nobody is inside.
    """
    name = f"stage-2 table at {table.root:#x}"
    mmu, pool = table.mmu, table.pool
    if unsound := peek(mmu, int(UNSOUND)):
        raise InvariantError(f"{name}: {unsound} times a page was freed with a wrong count, twice, or an entry LOCKED")
    if peek(mmu, int(peek(mmu, int(LOCK_BASE)))):
        raise InvariantError(f"{name}: the lock is held for writing")
    if not srcu_expired(mmu, int(peek(mmu, int(SRCU_BASE))), table.walkers, U64_MAX):
        raise InvariantError(f"{name}: a walker is inside an SRCU section")
    marks = own(pool.limit + 3)
    geometry = table.format.geometry
    if not table.destroyed:
        entries = geometry.root_entries
        _verify(table, name, marks, pool.page_of(table.root), geometry.start_level, entries, int(LINKED))
    for page in _put_aside(table):
        if table.discipline == "rcu":
            level = int(peek(pool.pages, int(PAGES) + 8 * page + int(ENTRY_LEVEL))) + 1
            _verify(table, f"{name}, put aside", marks, page, level, geometry.entries, int(DEAD))
        else:
            marks[page + 3] = 1
    held = [pool.address_of(page) for page in range(pool.limit) if marks[page + 3]]
    return held + [address for desk in table.desks for address in pool.cached(desk)]


def _verify(table: TableState, name: str, marks: Own, page: int, level: int, entries: int, state: int) -> None:
    pool = table.pool
    broken = int(check_tree(table.shape, pool.words, pool.pages, marks, page, level, entries, state))
    if broken:
        found, where = int(marks[0]), int(marks[1])
        raise InvariantError(f"{name}: page {pool.address_of(where):#x}: {BROKEN[broken]}: {found:#x}")


def _put_aside(table: TableState) -> Iterator[int]:
    """Pages in the queues of deferred ones."""
    base, size, capacity = (int(peek(table.mmu, int(word))) for word in (QUEUE_BASE, QUEUE_WORDS, QUEUE_CAPACITY))
    for walker in range(table.walkers):
        queue = base + walker * size
        for count in range(int(peek(table.mmu, queue)), int(peek(table.mmu, queue + 1))):
            yield int(peek(table.mmu, queue + 8 + 2 * (count & (capacity - 1)) + 1))
