"""One entry of a table: what its descriptor says, and how it is changed while others look (break-before-make).

*break*: compare-and-exchange the observed descriptor to LOCKED, then invalidate what it was. Only who did that may
*make*: store the new descriptor. Nobody waits for a LOCKED entry; who meets one, or loses the exchange, returns
EAGAIN and faults again. Exclusive operations store where shared ones exchange, but for leaves in which hardware may
set a flag meanwhile. Each table page counts its entries that are neither 0 nor LOCKED. Idea:
``stage2_try_break_pte()`` and ``stage2_make_pte()``, Linux ``arch/arm64/kvm/hyp/pgtable.c``.
"""

from __future__ import annotations

from ..atomics import (
    compare_exchange,
    exchange,
    fence,
    fetch_add,
    load_relaxed,
    store_relaxed,
    store_release,
    wake,
)
from ..compiled import ONE, U64, Own, Words, compiled, const, wrapping
from .invalidate import invalidate_ipa, invalidate_range
from .layout import (
    ACCESSED,
    ADDRESS,
    ADDRESS_HIGH_MASK,
    ADDRESS_HIGH_SHIFT,
    ADDRESS_MASK,
    BLOCK_KIND,
    COUNT,
    DIRTY,
    DISCIPLINE,
    ENTRY,
    ENTRY_LEVEL,
    FLAGS,
    HELD,
    LAST_LEVEL,
    LEVEL,
    LINKED,
    LOCK_SUBTREE,
    LOCKED,
    MODIFIER,
    OLD,
    PAGE_KIND,
    PAGE_SHIFT,
    PAGES,
    POOL_BASE,
    RETRIES,
    RETRY_WAITERS,
    SHARED,
    SKIP_INVALIDATE,
    STATE,
    STRIDE,
    TABLE_BITS,
    TABLE_KIND,
    TABLE_MASK,
    TLB_BASE,
    UNSOUND,
    VALID,
    WRITE_GRANTED,
    WRITE_MASK,
)
from .words import Table

__all__ = [
    "break_entry",
    "change_entry",
    "entry_line",
    "hardware_may_write",
    "is_counted",
    "is_table",
    "leaf_descriptor",
    "level_shift",
    "make_entry",
    "output_address",
    "page_get",
    "page_put",
    "set_table_state",
    "table_descriptor",
    "table_page",
]

_THREE = const(3)
_MINUS_ONE = const(0xFFFFFFFFFFFFFFFF)
_EVERYBODY = const(0x7FFFFFFF)


@compiled(inline=True)
def level_shift(shape: Own, level: U64) -> U64:
    """log2 of the bytes that an entry at ``level`` covers."""
    return shape[PAGE_SHIFT] + shape[STRIDE] * (shape[LAST_LEVEL] - level)


@compiled(inline=True)
def is_table(shape: Own, descriptor: U64, level: U64) -> bool:
    """Whether a descriptor at ``level`` points to a table."""
    return level < shape[LAST_LEVEL] and descriptor & shape[TABLE_MASK] == shape[TABLE_KIND]


@compiled
def is_counted(shape: Own, descriptor: U64) -> bool:
    """Whether a descriptor holds a reference on its page: any but 0 and LOCKED."""
    return descriptor != 0 and descriptor != shape[LOCKED]


@compiled(inline=True)
def output_address(shape: Own, descriptor: U64) -> U64:
    """The address in a table, block or page descriptor."""
    high = (descriptor & shape[ADDRESS_HIGH_MASK]) << shape[ADDRESS_HIGH_SHIFT]
    return (descriptor & shape[ADDRESS_MASK]) | high


@compiled(inline=True)
def _packed(shape: Own, address: U64) -> U64:
    """An output address, as the bits of a descriptor."""
    return (address & shape[ADDRESS_MASK]) | ((address >> shape[ADDRESS_HIGH_SHIFT]) & shape[ADDRESS_HIGH_MASK])


@compiled(inline=True)
def leaf_descriptor(shape: Own, level: U64, address: U64, attributes: U64) -> U64:
    """The leaf at ``level`` that maps to ``address``."""
    kind = shape[PAGE_KIND] if level == shape[LAST_LEVEL] else shape[BLOCK_KIND]
    return _packed(shape, address) | attributes | kind


@compiled
def table_descriptor(shape: Own, page: U64) -> U64:
    """The descriptor that points to table page number ``page``."""
    return _packed(shape, shape[POOL_BASE] + (page << shape[PAGE_SHIFT])) | shape[TABLE_BITS]


@compiled(inline=True)
def table_page(shape: Own, descriptor: U64) -> U64:
    """Page number that a table descriptor points to."""
    return (output_address(shape, descriptor) - shape[POOL_BASE]) >> shape[PAGE_SHIFT]


@compiled(inline=True)
def entry_line(shape: Own, entry: U64) -> U64:
    """Line, in ``pages``, of the page that holds word ``entry`` of the pool."""
    return PAGES + (entry >> (shape[PAGE_SHIFT] - _THREE) << 3)


@compiled(inline=True)
def page_get(pages: Words, line: U64, shared: bool) -> None:
    """Count one entry more; atomically if ``shared``."""
    if shared:
        fetch_add(pages, line + COUNT, ONE)
    else:
        store_relaxed(pages, line + COUNT, load_relaxed(pages, line + COUNT) + ONE)


@compiled(inline=True)
def page_put(pages: Words, line: U64, shared: bool) -> None:
    """Count one entry less."""
    if shared:
        fetch_add(pages, line + COUNT, _MINUS_ONE)
    else:
        store_relaxed(pages, line + COUNT, wrapping(load_relaxed(pages, line + COUNT) + _MINUS_ONE))


@compiled
def set_table_state(pages: Words, page: U64, level: U64, count: U64) -> None:
    """Make a cached page a table for an entry at ``level``, with ``count`` references, before the entry is made."""
    line = PAGES + (page << 3)
    store_relaxed(pages, line + COUNT, count)
    store_relaxed(pages, line + ENTRY_LEVEL, level)
    store_relaxed(pages, line + STATE, LINKED)
    store_release(pages, line + HELD, ONE)


@compiled(inline=True)
def hardware_may_write(shape: Own, mmu: Words, descriptor: U64) -> bool:
    """Whether a vCPU's hardware may set a flag in a valid leaf, now: its access flag, or what says that it was written.

    Idea: ``spte_needs_atomic_update()``, Linux ``arch/x86/kvm/mmu/spte.c``.
    """
    if load_relaxed(mmu, TLB_BASE) == 0:
        return False
    writable = descriptor & shape[WRITE_MASK] == shape[WRITE_GRANTED]
    if descriptor & shape[ACCESSED] == 0 or (writable and descriptor & shape[DIRTY] != shape[DIRTY]):
        return True
    return not writable and descriptor & shape[MODIFIER] != 0


@compiled(inline=True)
def change_entry(table: Table, mask: U64, value: U64) -> bool:
    """Make the bits ``mask`` of the visited leaf ``value``; False if another walker changed it first.

    Valid to valid: rights, access flag, software bits. Exclusive: True, and what hardware sets meanwhile is kept.
    """
    shape, pool, _pages, mmu, desk = table
    old = desk[OLD]
    new = (old & ~mask) | value
    if desk[FLAGS] & SHARED != 0:
        return compare_exchange(pool, desk[ENTRY], old, new) == old
    if not hardware_may_write(shape, mmu, old):
        store_relaxed(pool, desk[ENTRY], new)
        return True
    while True:
        seen = compare_exchange(pool, desk[ENTRY], old, new)
        if seen == old:
            return True
        old = seen
        new = (old & ~mask) | value


@compiled(inline=True)
def break_entry(table: Table) -> bool:
    """Lock the visited entry and invalidate what it was; False if another walker locked or changed it first.

    Exclusive: desk[OLD] is then what it was at last, with a flag that hardware set since the visit.
    """
    shape, pool, pages, mmu, desk = table
    old = desk[OLD]
    entry = desk[ENTRY]
    level = desk[LEVEL]
    shared = desk[FLAGS] & SHARED != 0
    locked = shape[LOCKED]
    if old == locked:
        if not shared:
            fetch_add(mmu, UNSOUND, ONE)
        return False
    if shared:
        if compare_exchange(pool, entry, old, locked) != old:
            return False
    elif old & shape[VALID] != 0 and not is_table(shape, old, level) and hardware_may_write(shape, mmu, old):
        desk[OLD] = exchange(pool, entry, locked)
    else:
        store_relaxed(pool, entry, locked)
    if old == 0:
        return True
    if old & shape[VALID] != 0 and desk[FLAGS] & SKIP_INVALIDATE == 0:
        if is_table(shape, old, level):
            shift = level_shift(shape, level)
            invalidate_range(mmu, desk[ADDRESS] >> shift << shift, ONE << shift)
        else:
            invalidate_ipa(mmu, desk[ADDRESS], level)
    page_put(pages, entry_line(shape, entry), shared)
    return True


@compiled(inline=True)
def make_entry(table: Table, new: U64) -> None:
    """Store ``new`` over the LOCKED that this walker put there. Release: who sees a table sees its entries."""
    shape, pool, pages, mmu, desk = table
    shared = desk[FLAGS] & SHARED != 0
    if new != 0:
        page_get(pages, entry_line(shape, desk[ENTRY]), shared)
    store_release(pool, desk[ENTRY], new)
    if shared and load_relaxed(mmu, DISCIPLINE) == LOCK_SUBTREE:
        fence()  # the entry is made before we look for who waits for it: see lock_subtree
        if load_relaxed(mmu, RETRY_WAITERS) != 0:
            fetch_add(mmu, RETRIES, ONE)
            wake(mmu, RETRIES, _EVERYBODY)
