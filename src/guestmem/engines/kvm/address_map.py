"""The slots as the VMM needs them to answer MMIO: sorted by guest address, edited while exits are held.

An entry is five words: first byte and end of the guest range, host address, flags, and where writes are noted
(``answered_writes``). Lookup O(log n), edits O(n). A slot of address space 1 (SMM) is at its address plus
1 << SPACE_SHIFT, above all that a guest can name.

Beside them, the last read-only slots that went, each with the update that took it. KVM emulates every write to such a
slot; an emulation that began before the update has read the old memory, and its write must not meet the new.
"""

from __future__ import annotations

from ...atomics import load_relaxed, store_relaxed
from ...compiled import U64, Words, compiled, const, u64

__all__ = [
    "ENTRY",
    "MAP_HOST",
    "SPACE_SHIFT",
    "map_find",
    "map_insert",
    "map_readonly",
    "map_remove",
    "map_words",
    "was_readonly",
]

ENTRY = const(5)
_COUNT = const(0)
_GONE_COUNT = const(1)  # read-only slots that went, so far
_GONE = const(8)
_GONE_ENTRY = const(3)  # first byte and end, update
_GONE_MAX = const(64)
_FIRST = const(8 + 3 * 64)
_END = const(1)
MAP_HOST = const(2)
MAP_BITS = const(4)
SPACE_SHIFT = const(56)
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
    store_relaxed(entries, place + MAP_BITS, u64(0))
    store_relaxed(entries, _COUNT, count + _ONE)


@compiled
def map_log(entries: Words, gpa: U64, bits: U64) -> None:
    """Have answers that write to the slot at ``gpa`` set bits at this host address; 0: no more."""
    store_relaxed(entries, map_find(entries, gpa) + MAP_BITS, bits)


@compiled
def was_readonly(entries: Words, gpa: U64, began: U64) -> bool:
    """Whether a read-only slot that held ``gpa`` went in an update under way at UPDATES ``began``, or in a later one.

    Of the last 64 that went.
    """
    count = load_relaxed(entries, _GONE_COUNT)
    looked = u64(0)
    while looked < count and looked < _GONE_MAX:
        looked += _ONE
        entry = _GONE + _GONE_ENTRY * ((count - looked) % _GONE_MAX)
        if load_relaxed(entries, entry + u64(2)) < began:
            return False
        if load_relaxed(entries, entry) <= gpa < load_relaxed(entries, entry + _ONE):
            return True
    return False


@compiled
def map_remove(entries: Words, gpa: U64, updates: U64) -> bool:
    """Take out the slot that begins at ``gpa``, in update ``updates``; False if there is none."""
    entry = map_find(entries, gpa)
    if entry == 0 or load_relaxed(entries, entry) != gpa:
        return False
    if map_readonly(entries, entry):
        gone = load_relaxed(entries, _GONE_COUNT)
        place = _GONE + _GONE_ENTRY * (gone % _GONE_MAX)
        store_relaxed(entries, place, gpa)
        store_relaxed(entries, place + _ONE, load_relaxed(entries, entry + _END))
        store_relaxed(entries, place + u64(2), updates)
        store_relaxed(entries, _GONE_COUNT, gone + _ONE)
    count = load_relaxed(entries, _COUNT)
    end = _FIRST + ENTRY * (count - _ONE)
    word = entry
    while word < end:
        store_relaxed(entries, word, load_relaxed(entries, word + ENTRY))
        word += _ONE
    store_relaxed(entries, _COUNT, count - _ONE)
    return True
