"""One edit of the inactive set: records taken and given back, a slot put in, taken out, exchanged, or marked INVALID.

Records are written before they are published and never after, so relaxed stores are enough; the release that
publishes the set publishes them. Source: ``kvm_replace_memslot()``, ``kvm_invalidate_memslot()``, Linux 6.18.
"""

from __future__ import annotations

from ..atomics import load_relaxed, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .layout import (
    AS_ID,
    ASKED_AS_ID,
    ASKED_ATTRIBUTES,
    ASKED_BASE_GFN,
    ASKED_FLAGS,
    ASKED_GUEST_MEMFD,
    ASKED_NPAGES,
    ASKED_OFFSET,
    ASKED_SLOT,
    ASKED_USERSPACE_ADDR,
    ATTRIBUTES,
    BASE_GFN,
    CHAIN,
    COUNT,
    DIRTY_BITMAP,
    EDITED,
    FLAGS,
    GUEST_MEMFD,
    GUEST_MEMFD_OFFSET,
    HVA_TREE,
    ID,
    KVM_MEMSLOT_INVALID,
    NPAGES,
    ORIGIN,
    OTHER,
    RECORD_FREE,
    RECORD_NEXT,
    RECORD_SHIFT,
    RECORDS_USED,
    TABLE,
    TOUCHED,
    TOUCHED_COUNT,
    USERSPACE_ADDR,
)
from .slot import KVM_MEM_GUEST_MEMFD
from .tree import tree_insert, tree_remove, tree_replace

__all__ = [
    "CREATE",
    "DELETE",
    "FLAGS_ONLY",
    "MOVE",
    "NOTHING",
    "add",
    "drop",
    "edit",
    "exchange_in_place",
    "give_record",
    "mark",
    "origin",
]

CREATE, DELETE, MOVE, FLAGS_ONLY, NOTHING = (const(kind) for kind in range(1, 6))
"""Kinds of change as status words."""
_GUEST_MEMFD = const(KVM_MEM_GUEST_MEMFD)


@compiled
def _take_record(memslots: Words, desk: Own) -> U64:
    """A record from the free list, else one never used; there is one: see ``geometry``."""
    record = desk[RECORD_FREE]
    if record == 0:
        record = desk[RECORD_NEXT]
        desk[RECORD_NEXT] = record + ONE
    else:
        desk[RECORD_FREE] = load_relaxed(memslots, (record << RECORD_SHIFT) + ORIGIN)
    desk[RECORDS_USED] += ONE
    return record


@compiled
def give_record(memslots: Words, desk: Own, record: U64) -> None:
    """Back to the free list: a record that was never published, or that left both sets a grace period ago."""
    store_relaxed(memslots, (record << RECORD_SHIFT) + ORIGIN, desk[RECORD_FREE])
    desk[RECORD_FREE] = record
    desk[RECORDS_USED] -= ONE


@compiled
def origin(memslots: Words, record: U64) -> U64:
    """The record that an INVALID copy stands for; any other record (or 0) itself."""
    if record != 0 and load_relaxed(memslots, (record << RECORD_SHIFT) + FLAGS) & KVM_MEMSLOT_INVALID != 0:
        return load_relaxed(memslots, (record << RECORD_SHIFT) + ORIGIN)
    return record


@compiled
def add(memslots: Words, desk: Own, set_: U64, record: U64) -> None:
    """Put a record into a set. O(log n)."""
    words = record << RECORD_SHIFT
    id_ = load_relaxed(memslots, words + ID)
    hva = load_relaxed(memslots, words + USERSPACE_ADDR)
    gfn = load_relaxed(memslots, words + BASE_GFN)
    npages = load_relaxed(memslots, words + NPAGES)
    tree_insert(memslots, desk, set_, gfn, u64(0), record, gfn + npages)
    tree_insert(memslots, desk, set_ + HVA_TREE, hva, id_, record, hva + (npages << 12))
    store_relaxed(memslots, load_relaxed(memslots, set_ + TABLE) + id_, record)
    store_relaxed(memslots, set_ + COUNT, load_relaxed(memslots, set_ + COUNT) + ONE)


@compiled
def drop(memslots: Words, desk: Own, set_: U64, record: U64) -> None:
    """Take a record out of a set. O(log n)."""
    words = record << RECORD_SHIFT
    id_ = load_relaxed(memslots, words + ID)
    tree_remove(memslots, desk, set_, load_relaxed(memslots, words + BASE_GFN), u64(0))
    tree_remove(memslots, desk, set_ + HVA_TREE, load_relaxed(memslots, words + USERSPACE_ADDR), id_)
    store_relaxed(memslots, load_relaxed(memslots, set_ + TABLE) + id_, u64(0))
    store_relaxed(memslots, set_ + COUNT, load_relaxed(memslots, set_ + COUNT) - ONE)


@compiled
def exchange_in_place(memslots: Words, desk: Own, set_: U64, old: U64, new: U64) -> bool:
    """Put ``new`` where ``old`` is if both are the same ranges; returns whether it was done. O(log n)."""
    was = old << RECORD_SHIFT
    now = new << RECORD_SHIFT
    gfn = load_relaxed(memslots, now + BASE_GFN)
    hva = load_relaxed(memslots, now + USERSPACE_ADDR)
    if (
        gfn != load_relaxed(memslots, was + BASE_GFN)
        or hva != load_relaxed(memslots, was + USERSPACE_ADDR)
        or load_relaxed(memslots, now + NPAGES) != load_relaxed(memslots, was + NPAGES)
    ):
        return False
    id_ = load_relaxed(memslots, now + ID)
    tree_replace(memslots, desk, set_, gfn, u64(0), new)
    tree_replace(memslots, desk, set_ + HVA_TREE, hva, id_, new)
    store_relaxed(memslots, load_relaxed(memslots, set_ + TABLE) + id_, new)
    return True


@compiled
def _touch(desk: Own, id_: U64) -> None:
    """Note that the update changed slot ``id_``. O(1)."""
    if desk[CHAIN + id_] == 0:
        desk[CHAIN + id_] = desk[TOUCHED] + ONE
        desk[TOUCHED] = id_ + ONE
        desk[TOUCHED_COUNT] += ONE


@compiled
def edit(memslots: Words, desk: Own, kind: U64) -> None:
    """Carry out the judged change that the desk asks for on the edited set. O(log n)."""
    set_ = desk[EDITED]
    id_ = desk[ASKED_SLOT]
    old = load_relaxed(memslots, load_relaxed(memslots, set_ + TABLE) + id_)
    new = u64(0)
    if kind != DELETE:
        new = _take_record(memslots, desk)
        words = new << RECORD_SHIFT
        bound = desk[ASKED_FLAGS] & _GUEST_MEMFD != 0
        store_relaxed(memslots, words + AS_ID, desk[ASKED_AS_ID])
        store_relaxed(memslots, words + ID, id_)
        store_relaxed(memslots, words + BASE_GFN, desk[ASKED_BASE_GFN])
        store_relaxed(memslots, words + NPAGES, desk[ASKED_NPAGES])
        store_relaxed(memslots, words + USERSPACE_ADDR, desk[ASKED_USERSPACE_ADDR])
        store_relaxed(memslots, words + FLAGS, desk[ASKED_FLAGS])
        store_relaxed(memslots, words + ORIGIN, u64(0))
        store_relaxed(memslots, words + DIRTY_BITMAP, u64(0))
        store_relaxed(memslots, words + GUEST_MEMFD, desk[ASKED_GUEST_MEMFD] if bound else u64(0))
        store_relaxed(memslots, words + GUEST_MEMFD_OFFSET, desk[ASKED_OFFSET] if bound else u64(0))
        store_relaxed(memslots, words + ATTRIBUTES, desk[ASKED_ATTRIBUTES])
    if kind != FLAGS_ONLY or not exchange_in_place(memslots, desk, set_, old, new):
        if old != 0:
            drop(memslots, desk, set_, old)
        if new != 0:
            add(memslots, desk, set_, new)
    _touch(desk, id_)
    if old != 0 and old != origin(memslots, load_relaxed(memslots, load_relaxed(memslots, desk[OTHER] + TABLE) + id_)):
        give_record(memslots, desk, old)  # made by this update, never published


@compiled
def mark(memslots: Words, desk: Own, id_: U64) -> None:
    """Put an INVALID copy in a slot's place in the edited set. O(log n)."""
    set_ = desk[EDITED]
    old = load_relaxed(memslots, load_relaxed(memslots, set_ + TABLE) + id_)
    copy = _take_record(memslots, desk)
    was = old << RECORD_SHIFT
    now = copy << RECORD_SHIFT
    field = u64(0)
    while field <= ATTRIBUTES:
        store_relaxed(memslots, now + field, load_relaxed(memslots, was + field))
        field += ONE
    store_relaxed(memslots, now + FLAGS, load_relaxed(memslots, was + FLAGS) | KVM_MEMSLOT_INVALID)
    store_relaxed(memslots, now + ORIGIN, old)
    exchange_in_place(memslots, desk, set_, old, copy)
    _touch(desk, id_)
