"""What conversions are made of: whether there is anything to do, and the host's side of it, under the invalidate lock.

Source: ``kvm_gmem_set_attributes()`` and its callees, "guest_memfd: In-place conversion support", kvm, September 2026.
"""

from __future__ import annotations

from ..atomics import compare_exchange, fetch_add, fetch_and, load_acquire, load_relaxed
from ..compiled import U64, Own, Words, compiled, const
from ..ranges.lookup import ranges_find
from .folio import folios_in_use, page_word, unmap_host
from .invalidate_lock import write_lock, write_unlock
from .layout import (
    CONVERSIONS,
    FOLIO,
    IN_USE,
    NONE,
    OK,
    PRESENT,
    PTE,
    REFS,
    REFUSALS,
    SAME,
    TYPED,
)

__all__ = ["convert_begin", "convert_end", "convert_from_host", "folio_forget", "folio_register", "folio_registered"]

_ONE = const(1)
_NOT_TYPED = const(((1 << 64) - 1) ^ (1 << 35))


@compiled
def has_value(states: Words, first: U64, last: U64, value: U64, found: Own) -> bool:
    """Whether every page of [first, last] has ``value``: equal neighbours are one range, so one look tells."""
    ranges_find(states, first, found)
    return found[2] == value and found[1] >= last


@compiled(nogil=True)
def convert_begin(inode: Words, states: Words, first: U64, last: U64, value: U64, found: Own) -> U64:
    """Take the lock for writing: OK. SAME, and the lock is not held: every page of [first, last] has ``value``."""
    write_lock(inode)
    if has_value(states, first, last, value, found):
        write_unlock(inode)
        return SAME
    return OK


@compiled(nogil=True)
def convert_from_host(inode: Words, first: U64, last: U64, found: Own) -> U64:
    """Unmap pages [first, last] from the host, and look who holds them; the lock is held for writing.

    IN_USE: found[0] is the first page that somebody outside holds. The host has to fault its pages again either way.
    """
    unmap_host(inode, first, last)
    page = folios_in_use(inode, first, last)
    if page == NONE:
        return OK
    found[0] = page
    fetch_add(inode, REFUSALS, _ONE)
    return IN_USE


@compiled
def convert_end(inode: Words) -> None:
    """The conversion is stored, and what the guest had mapped of the old kind is gone: give the lock back."""
    fetch_add(inode, CONVERSIONS, _ONE)
    write_unlock(inode)


@compiled
def folio_register(inode: Words, index: U64) -> U64:
    """Mappability: let the last put of page ``index`` call back. The lock is held for writing.

    OK: it will. SAME: nobody holds it any more, so nobody will. IN_USE: it is mapped still, and a folio cannot be both
    mapped and typed. By exchange: a put in between is seen here, or sees TYPED.
    """
    at = page_word(index) + FOLIO
    if load_acquire(inode, page_word(index) + PTE) != 0:
        return IN_USE
    seen = load_relaxed(inode, at)
    while seen & PRESENT != 0 and seen & REFS != 0:
        now = compare_exchange(inode, at, seen, seen | TYPED)
        if now == seen:
            return OK
        seen = now
    return SAME


@compiled
def folio_registered(inode: Words, index: U64) -> bool:
    """Whether page ``index`` waits for its last put and has had it; then it waits no longer. Under the lock."""
    at = page_word(index) + FOLIO
    seen = load_acquire(inode, at)
    return seen & TYPED != 0 and seen & REFS == 0 and compare_exchange(inode, at, seen, seen & _NOT_TYPED) == seen


@compiled
def folio_forget(inode: Words, index: U64) -> None:
    """Page ``index`` waits for no last put any more. Under the lock for writing."""
    fetch_and(inode, page_word(index) + FOLIO, _NOT_TYPED)
