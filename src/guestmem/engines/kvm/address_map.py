"""The slots as the VMM needs them to answer MMIO: sorted by guest address, edited while exits are held.

An entry is four words: first byte and end of the guest range, host address, flags. Lookup O(log n), edits O(n).
"""

from __future__ import annotations

from ...atomics import load_relaxed, store_relaxed
from ...compiled import U64, Words, compiled, const, u64

__all__ = ["ENTRY", "MAP_HOST", "map_find", "map_insert", "map_readonly", "map_remove", "map_words"]

ENTRY = const(4)
_COUNT = const(0)
_FIRST = const(8)
_END = const(1)
MAP_HOST = const(2)
_FLAGS = const(3)
_ONE = const(1)
_READONLY = const(2)


def map_words(slots: int) -> int:
    """Words that a map of ``slots`` slots takes."""
    return int(_FIRST) + int(ENTRY) * slots


@compiled
def _after(entries: Words, gpa: U64) -> U64:
    """Number of entries that begin at or below ``gpa``."""
    low = u64(0)
    high = load_relaxed(entries, _COUNT)
    while low < high:
        middle = (low + high) >> 1
        if load_relaxed(entries, _FIRST + ENTRY * middle) <= gpa:
            low = middle + _ONE
        else:
            high = middle
    return low


@compiled
def map_find(entries: Words, gpa: U64) -> U64:
    """Where the entry that holds ``gpa`` begins in the words; 0 if no slot does."""
    after = _after(entries, gpa)
    if after == 0:
        return u64(0)
    entry = _FIRST + ENTRY * (after - _ONE)
    if gpa < load_relaxed(entries, entry + _END):
        return entry
    return u64(0)


@compiled
def map_readonly(entries: Words, entry: U64) -> bool:
    """Whether guest writes to the entry's slot are none of its memory's."""
    return load_relaxed(entries, entry + _FLAGS) & _READONLY != 0


@compiled
def map_insert(entries: Words, gpa: U64, end: U64, host: U64, flags: U64) -> None:
    """Add a slot that overlaps none."""
    place = _FIRST + ENTRY * _after(entries, gpa)
    count = load_relaxed(entries, _COUNT)
    word = _FIRST + ENTRY * count
    while word > place:
        word -= _ONE
        store_relaxed(entries, word + ENTRY, load_relaxed(entries, word))
    store_relaxed(entries, place, gpa)
    store_relaxed(entries, place + _END, end)
    store_relaxed(entries, place + MAP_HOST, host)
    store_relaxed(entries, place + _FLAGS, flags)
    store_relaxed(entries, _COUNT, count + _ONE)


@compiled
def map_remove(entries: Words, gpa: U64) -> bool:
    """Take out the slot that begins at ``gpa``; False if there is none."""
    entry = map_find(entries, gpa)
    if entry == 0 or load_relaxed(entries, entry) != gpa:
        return False
    count = load_relaxed(entries, _COUNT)
    end = _FIRST + ENTRY * (count - _ONE)
    word = entry
    while word < end:
        store_relaxed(entries, word, load_relaxed(entries, word + ENTRY))
        word += _ONE
    store_relaxed(entries, _COUNT, count - _ONE)
    return True
