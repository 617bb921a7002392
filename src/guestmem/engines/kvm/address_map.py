"""The slots as the VMM needs them to answer MMIO: sorted by guest address, edited while exits are held.

An entry is five words: first byte and end of the guest range, host address, flags, and where writes are noted
(``answered_writes``). Lookup O(log n), edits O(n). A slot of address space 1 (SMM) is at its address plus
1 << SPACE_SHIFT, above all that a guest can name.

Beside them, the read-only slots that went in the update that is under way, or just over. KVM emulates every write to
such a slot; an emulation that began before the update has read the old memory, and its write must not meet the new.
KVM_SET_USER_MEMORY_REGION waits for such emulations to leave the guest, so the list is emptied after the update, once
all vCPUs have been outside with nothing left to answer.
"""

from __future__ import annotations

from ...atomics import load_relaxed, store_relaxed
from ...compiled import ONE, U64, Words, compiled, const, u64

__all__ = [
    "ENTRY",
    "MAP_HOST",
    "SPACE_SHIFT",
    "forget_readonly",
    "map_begin",
    "map_find",
    "map_insert",
    "map_log",
    "map_readonly",
    "map_remove",
    "map_words",
    "readonly_gone",
    "was_readonly",
]

ENTRY = const(5)
_COUNT = const(0)
_GONE_COUNT = const(1)  # read-only slots that went
_GONE_MAX = const(2)  # how many of them there is room for
_GONE = const(8)
_GONE_ENTRY = const(2)  # first byte and end
_END = const(1)
MAP_HOST = const(2)
MAP_BITS = const(4)
SPACE_SHIFT = const(56)
_FLAGS = const(3)
_READONLY = const(2)


def map_words(slots: int) -> int:
    """Words that a map of ``slots`` slots takes."""
    return int(_GONE) + (int(ENTRY) + int(_GONE_ENTRY)) * slots


@compiled
def map_begin(entries: Words, slots: U64) -> None:
    """Make new words a map of ``slots`` slots."""
    store_relaxed(entries, _GONE_MAX, slots)


@compiled
def _first(entries: Words) -> U64:
    """Where the entries begin."""
    return _GONE + _GONE_ENTRY * load_relaxed(entries, _GONE_MAX)


@compiled
def _after(entries: Words, gpa: U64) -> U64:
    """Number of entries that begin at or below ``gpa``."""
    low = u64(0)
    high = load_relaxed(entries, _COUNT)
    while low < high:
        middle = (low + high) >> 1
        if load_relaxed(entries, _first(entries) + ENTRY * middle) <= gpa:
            low = middle + ONE
        else:
            high = middle
    return low


@compiled
def map_find(entries: Words, gpa: U64) -> U64:
    """Where the entry that holds ``gpa`` begins in the words; 0 if no slot does."""
    after = _after(entries, gpa)
    if after == 0:
        return u64(0)
    entry = _first(entries) + ENTRY * (after - ONE)
    if gpa < load_relaxed(entries, entry + _END):
        return entry
    return u64(0)


@compiled
def map_readonly(entries: Words, entry: U64) -> bool:
    """Whether the entry's slot is read-only: guest writes exit, and do not reach its memory."""
    return load_relaxed(entries, entry + _FLAGS) & _READONLY != 0


@compiled
def map_insert(entries: Words, gpa: U64, end: U64, host: U64, flags: U64) -> None:
    """Add a slot that overlaps none."""
    place = _first(entries) + ENTRY * _after(entries, gpa)
    count = load_relaxed(entries, _COUNT)
    word = _first(entries) + ENTRY * count
    while word > place:
        word -= ONE
        store_relaxed(entries, word + ENTRY, load_relaxed(entries, word))
    store_relaxed(entries, place, gpa)
    store_relaxed(entries, place + _END, end)
    store_relaxed(entries, place + MAP_HOST, host)
    store_relaxed(entries, place + _FLAGS, flags)
    store_relaxed(entries, place + MAP_BITS, u64(0))
    store_relaxed(entries, _COUNT, count + ONE)


@compiled
def map_log(entries: Words, gpa: U64, bits: U64) -> None:
    """Have answers that write to the slot at ``gpa`` set bits at this host address; 0: no more."""
    store_relaxed(entries, map_find(entries, gpa) + MAP_BITS, bits)


@compiled
def was_readonly(entries: Words, gpa: U64) -> bool:
    """Whether a read-only slot that held ``gpa`` went in the update that is under way, or just over.

    If more went than there is room for, one of them may have: a store that lands nowhere is seen by the caller.
    """
    count = load_relaxed(entries, _GONE_COUNT)
    if count > load_relaxed(entries, _GONE_MAX):
        return True
    looked = u64(0)
    while looked < count:
        entry = _GONE + _GONE_ENTRY * looked
        if load_relaxed(entries, entry) <= gpa < load_relaxed(entries, entry + ONE):
            return True
        looked += ONE
    return False


@compiled
def readonly_gone(entries: Words) -> U64:
    """How many read-only slots went since ``forget_readonly``."""
    return load_relaxed(entries, _GONE_COUNT)


@compiled
def forget_readonly(entries: Words) -> None:
    """No vCPU has an exit that began before the update any more."""
    store_relaxed(entries, _GONE_COUNT, u64(0))


@compiled
def map_remove(entries: Words, gpa: U64) -> bool:
    """Take out the slot that begins at ``gpa``; False if there is none."""
    entry = map_find(entries, gpa)
    if entry == 0 or load_relaxed(entries, entry) != gpa:
        return False
    if map_readonly(entries, entry):
        gone = load_relaxed(entries, _GONE_COUNT)
        if gone < load_relaxed(entries, _GONE_MAX):
            place = _GONE + _GONE_ENTRY * gone
            store_relaxed(entries, place, gpa)
            store_relaxed(entries, place + ONE, load_relaxed(entries, entry + _END))
        store_relaxed(entries, _GONE_COUNT, gone + ONE)
    count = load_relaxed(entries, _COUNT)
    end = _first(entries) + ENTRY * (count - ONE)
    word = entry
    while word < end:
        store_relaxed(entries, word, load_relaxed(entries, word + ENTRY))
        word += ONE
    store_relaxed(entries, _COUNT, count - ONE)
    return True
