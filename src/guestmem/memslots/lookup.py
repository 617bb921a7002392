"""Finding slots, compiled: by gfn, by id, and over ranges of gfns and of host addresses.

For readers inside an SRCU section (vCPUs), and for the updater. None takes a lock, none writes to shared words.
Idea: ``search_memslots()``, ``kvm_for_each_memslot_in_gfn_range()`` and ``_in_hva_range()``, Linux 6.18.

A cursor is ``CURSOR_WORDS`` own words: 0 fan-out, 1 level (only by hva), 2 start, 3 end, then node and index per level,
leaf first.
"""

from __future__ import annotations

from ..atomics import load_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, u64, wrapping
from ..rcu.srcu import srcu_enter, srcu_exit
from .layout import (
    BASE_GFN,
    FANOUT,
    FIRST_FIELD,
    GENERATION,
    HEIGHT,
    HVA_TREE,
    IDS,
    NPAGES,
    RECORD_SHIFT,
    ROOT,
    SLOT_WORDS,
    TABLE,
    active_set,
)
from .tree import last_at_most

__all__ = [
    "CURSOR_WORDS",
    "copy_by_id",
    "copy_find",
    "copy_record",
    "copy_slots",
    "find",
    "find_hinted",
    "find_id",
    "find_in",
    "find_with_hint",
    "gfn_next",
    "gfn_seek",
    "hva_next",
    "hva_seek",
    "last_before",
]

CURSOR_WORDS = 40
_PATH = const(4)
_FIRST = const(CURSOR_WORDS)


@compiled
def _last_gfn(memslots: Words, keys: U64, count: U64, gfn: U64) -> U64:
    """As ``last_at_most``, for frames below 2**63, without a branch on what is compared.

    Bit 63 of the difference tells which is larger, and shifts the step away. LLVM makes a branch of everything that
    looks like a choice, and random frames mispredict every second one: 86 ns a lookup at 32,764 slots, against 46.
    """
    low = u64(0)
    while count > 1:
        half = count >> 1
        low += half >> ((wrapping(gfn - load_relaxed(memslots, keys + low + half)) >> 63) << 5)
        count -= half
    return low


@compiled
def _entry_before(memslots: Words, set_: U64, gfn: U64) -> U64:
    """Word of the leaf's key that is the last at most ``gfn``, else the first one; 0 in an empty set. O(log n).

    For ``gfn`` from 2**63 on, some entry.
    """
    node = load_relaxed(memslots, set_ + ROOT)
    level = load_relaxed(memslots, set_ + HEIGHT)
    fanout = load_relaxed(memslots, set_ + FANOUT)
    count = load_relaxed(memslots, node)
    if count == 0:
        return u64(0)
    while True:
        entry = node + ONE + _last_gfn(memslots, node + ONE, count, gfn)
        if level == 0:
            return entry
        node = load_relaxed(memslots, entry + fanout)
        count = load_relaxed(memslots, node)
        level -= ONE


@compiled
def last_before(memslots: Words, set_: U64, gfn: U64) -> U64:
    """The record with the largest base that is at most ``gfn``, else the first one; 0 in an empty set. O(log n)."""
    entry = _entry_before(memslots, set_, gfn)
    return u64(0) if entry == 0 else load_relaxed(memslots, entry + load_relaxed(memslots, set_ + FANOUT))


@compiled
def find_in(memslots: Words, set_: U64, gfn: U64) -> U64:
    """The record that holds frame ``gfn`` in a set, or 0. O(log n).

    Both bounds stand in the leaf: the record, a cache line elsewhere, is not touched, and need not be for a hole.
    """
    entry = _entry_before(memslots, set_, gfn)
    if entry == 0:
        return entry
    fanout = load_relaxed(memslots, set_ + FANOUT)
    if load_relaxed(memslots, entry) <= gfn < load_relaxed(memslots, entry + fanout + fanout):
        return load_relaxed(memslots, entry + fanout)
    return u64(0)


@compiled
def find(memslots: Words, as_id: U64, gfn: U64) -> U64:
    """The record that holds frame ``gfn`` in the active set, or 0; inside an SRCU section. O(log n).

    The caller looks at ``slot_flags`` for KVM_MEMSLOT_INVALID.
    """
    return find_in(memslots, active_set(memslots, as_id), gfn)


@compiled
def find_with_hint(memslots: Words, as_id: U64, gfn: U64, record: U64, seen: U64) -> U64:
    """As ``find``, after a look at ``record``, which it gave when the set's generation was ``seen``. O(1) or O(log n).

    A record outlives its set by a grace period at most, and each set that is published has a generation of its own
    (spaces never share one), so a record of this very generation is in this very set. Start with record 0.
    """
    set_ = active_set(memslots, as_id)
    if record != 0 and load_relaxed(memslots, set_ + GENERATION) == seen:
        words = record << RECORD_SHIFT
        if wrapping(gfn - load_relaxed(memslots, words + BASE_GFN)) < load_relaxed(memslots, words + NPAGES):
            return record
    return find_in(memslots, set_, gfn)


@compiled
def find_hinted(memslots: Words, as_id: U64, gfn: U64, hint: Own, at: U64) -> U64:
    """``find_with_hint`` with record and generation kept in a vCPU's own words ``at`` and ``at`` + 1."""
    set_ = active_set(memslots, as_id)
    seen = load_relaxed(memslots, set_ + GENERATION)
    record = hint[at]
    if record != 0 and hint[at + ONE] == seen:
        words = record << RECORD_SHIFT
        if wrapping(gfn - load_relaxed(memslots, words + BASE_GFN)) < load_relaxed(memslots, words + NPAGES):
            return record
    record = find_in(memslots, set_, gfn)
    if record != 0:
        hint[at] = record
        hint[at + ONE] = seen
    return record


@compiled
def find_id(memslots: Words, as_id: U64, id_: U64) -> U64:
    """The record of slot ``id_`` in the active set, or 0; any ``id_``. O(1)."""
    if id_ >= load_relaxed(memslots, IDS):
        return u64(0)
    return load_relaxed(memslots, load_relaxed(memslots, active_set(memslots, as_id) + TABLE) + id_)


@compiled
def gfn_seek(memslots: Words, cursor: Own, set_: U64, start_gfn: U64, end_gfn: U64) -> None:
    """Put a cursor before the first slot of a set that overlaps ``[start_gfn, end_gfn)``. O(log n)."""
    fanout = load_relaxed(memslots, set_ + FANOUT)
    level = load_relaxed(memslots, set_ + HEIGHT)
    node = load_relaxed(memslots, set_ + ROOT)
    cursor[u64(0)] = fanout
    cursor[u64(1)] = level
    cursor[u64(3)] = end_gfn if start_gfn < end_gfn else u64(0)
    while True:
        count = load_relaxed(memslots, node)
        index = last_at_most(memslots, node + ONE, count, start_gfn)
        cursor[_PATH + level + level] = node
        cursor[_PATH + level + level + ONE] = index
        if level == 0:
            break
        node = load_relaxed(memslots, node + ONE + fanout + index)
        level -= ONE
    if count != 0:
        words = load_relaxed(memslots, node + ONE + fanout + index) << RECORD_SHIFT
        if load_relaxed(memslots, words + BASE_GFN) + load_relaxed(memslots, words + NPAGES) <= start_gfn:
            cursor[_PATH + ONE] = index + ONE


@compiled
def gfn_next(memslots: Words, cursor: Own) -> U64:
    """The cursor's next record, or 0 at the end. Ascending by gfn; O(1) amortised."""
    fanout = cursor[u64(0)]
    height = cursor[u64(1)]
    level = u64(0)
    node = cursor[_PATH]
    index = cursor[_PATH + ONE]
    while index >= load_relaxed(memslots, node):  # the node is used up: up to one with a next child
        if level == height:
            return u64(0)
        level += ONE
        node = cursor[_PATH + level + level]
        index = cursor[_PATH + level + level + ONE] + ONE
    while level > 0:  # and down its left edge
        cursor[_PATH + level + level + ONE] = index
        node = load_relaxed(memslots, node + ONE + fanout + index)
        level -= ONE
        cursor[_PATH + level + level] = node
        index = u64(0)
    record = load_relaxed(memslots, node + ONE + fanout + index)
    if load_relaxed(memslots, (record << RECORD_SHIFT) + BASE_GFN) >= cursor[u64(3)]:
        return u64(0)
    cursor[_PATH + ONE] = index + ONE
    return record


@compiled
def hva_seek(memslots: Words, cursor: Own, set_: U64, start: U64, end: U64) -> None:
    """Put a cursor before the first slot of a set whose host bytes overlap ``[start, end)``. O(1)."""
    tree = set_ + HVA_TREE
    level = load_relaxed(memslots, tree + HEIGHT)
    cursor[u64(0)] = load_relaxed(memslots, tree + FANOUT)
    cursor[u64(1)] = level
    cursor[u64(2)] = start
    cursor[u64(3)] = end if start < end else u64(0)
    cursor[_PATH + level + level] = load_relaxed(memslots, tree + ROOT)
    cursor[_PATH + level + level + ONE] = u64(0)
    while level > 0:  # levels below are not open yet; the root's is where hva_next starts
        level -= ONE
        cursor[_PATH + level + level] = u64(0)


@compiled
def hva_next(memslots: Words, cursor: Own) -> U64:
    """The cursor's next record, or 0 at the end. Ascending by (userspace_addr, id); O(log n + k) for all k."""
    fanout = cursor[u64(0)]
    height = cursor[u64(1)]
    start = cursor[u64(2)]
    end = cursor[u64(3)]
    level = u64(0)
    while cursor[_PATH + level + level] == 0:  # the lowest level that is open
        level += ONE
    while True:
        node = cursor[_PATH + level + level]
        index = cursor[_PATH + level + level + ONE]
        entry = node + ONE + index
        if index >= load_relaxed(memslots, node):
            if level == height:
                return u64(0)
            cursor[_PATH + level + level] = u64(0)
            level += ONE
            continue
        if load_relaxed(memslots, entry) >= end:  # so does all that follows
            return u64(0)
        cursor[_PATH + level + level + ONE] = index + ONE
        if load_relaxed(memslots, entry + fanout + fanout) <= start:  # ends before: so does all below
            continue
        value = load_relaxed(memslots, entry + fanout)
        if level == 0:
            return value
        level -= ONE
        cursor[_PATH + level + level] = value
        cursor[_PATH + level + level + ONE] = u64(0)


@compiled
def copy_record(memslots: Words, record: U64, out: Own, at: U64) -> None:
    """Copy a record's fields that are ``Slot``'s, in its order."""
    words = (record << RECORD_SHIFT) + FIRST_FIELD
    field = u64(0)
    while field < SLOT_WORDS:
        out[at + field] = load_relaxed(memslots, words + field)
        field += ONE


@compiled
def copy_find(memslots: Words, srcu: Words, as_id: U64, gfn: U64, out: Own) -> bool:
    """From Python, as reader 0: find a frame's slot and copy it to the start of ``out``. O(log n)."""
    srcu_enter(srcu, u64(0), u64(0))
    record = find(memslots, as_id, gfn)
    if record != 0:
        copy_record(memslots, record, out, u64(0))
    srcu_exit(srcu, u64(0), u64(0))
    return record != 0


@compiled
def copy_by_id(memslots: Words, srcu: Words, as_id: U64, id_: U64, out: Own) -> bool:
    """From Python, as reader 0: copy slot ``id_`` to the start of ``out``. O(1)."""
    srcu_enter(srcu, u64(0), u64(0))
    record = find_id(memslots, as_id, id_)
    if record != 0:
        copy_record(memslots, record, out, u64(0))
    srcu_exit(srcu, u64(0), u64(0))
    return record != 0


@compiled
def copy_slots(memslots: Words, srcu: Words, as_id: U64, start: U64, end: U64, by_hva: bool, out: Own) -> U64:
    """From Python, as reader 0: copy all slots of a range, all from one set, after ``CURSOR_WORDS`` of ``out``.

    Returns how many there are, which may be more than fit. O(log n + k).
    """
    srcu_enter(srcu, u64(0), u64(0))
    set_ = active_set(memslots, as_id)
    if by_hva:
        hva_seek(memslots, out, set_, start, end)
    else:
        gfn_seek(memslots, out, set_, start, end)
    room = u64(len(out))
    at = _FIRST
    count = u64(0)
    while True:
        record = hva_next(memslots, out) if by_hva else gfn_next(memslots, out)
        if record == 0:
            break
        if at + SLOT_WORDS <= room:
            copy_record(memslots, record, out, at)
            at += SLOT_WORDS
        count += ONE
    srcu_exit(srcu, u64(0), u64(0))
    return count
