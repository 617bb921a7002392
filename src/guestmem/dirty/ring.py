"""A vCPU's dirty ring: entries that the vCPU fills, user space harvests, and KVM_RESET_DIRTY_RINGS gives back.

An entry goes from invalid to dirty (the vCPU), to harvested (user space), to invalid (the reset); its flags word says
where it is. It takes two words: flags and slot (as in ``struct kvm_dirty_gfn``, 16 bytes), then the offset in pages.
Source: Linux 6.18, ``virt/kvm/dirty_ring.c``.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from ..atomics import fetch_or, load_acquire, load_relaxed, peek, store_relaxed, store_release
from ..compiled import ONE, TWO, U64, Own, Words, compiled, const, own, u64, words, wrapping
from ..errors import InvariantError, MemslotError, UsageError
from ..slot_key import SlotKey

__all__ = [
    "ENTRY_BYTES",
    "MAX_ENTRIES",
    "RESERVED_ENTRIES",
    "DirtyEntry",
    "DirtyRing",
    "Run",
    "ring_harvest",
    "ring_push",
    "ring_reset",
    "ring_size",
    "ring_used",
]

ENTRY_BYTES = 16
MAX_ENTRIES = 65536
RESERVED_ENTRIES = 64
"""Entries that may still come after a ring is soft full; with PML, its 512 come on top."""
_PAGE = 4096

# The words of a ring.
DIRTY_INDEX = const(0)  # only the vCPU writes it
RESET_INDEX = const(8)  # only the reset writes it
ENTRIES = const(16)  # two words each

_DIRTY = const(1)
_HARVESTED = const(2)
_BITS = const(64)
_LOW = const((1 << 32) - 1)


@compiled
def ring_used(ring: Words) -> U64:
    """Entries between the reset and the vCPU: dirty or harvested. O(1)."""
    return wrapping(load_relaxed(ring, DIRTY_INDEX) - load_acquire(ring, RESET_INDEX)) & _LOW


@compiled
def ring_push(ring: Words, size: U64, soft_limit: U64, slot: U64, offset: U64) -> bool:
    """The vCPU wrote page ``offset`` of ``slot`` (``SlotKey.word``); returns whether the ring is soft full now. O(1).

    Release: who sees the flags sees the offset. A ring that is hard full is overwritten, as in KVM, which only warns:
    the reserve exists so that it never is.
    """
    index = load_relaxed(ring, DIRTY_INDEX)
    entry = ENTRIES + TWO * (index & (size - ONE))
    store_relaxed(ring, entry + ONE, offset)
    store_release(ring, entry, (slot << 32) | _DIRTY)
    store_release(ring, DIRTY_INDEX, (index + ONE) & _LOW)
    return ring_used(ring) >= soft_limit


@compiled
def ring_harvest(ring: Words, size: U64, index: U64, out: Own) -> bool:
    """User space takes entry ``index`` if it is dirty: slot and offset to ``out``; returns whether it was. O(1)."""
    entry = ENTRIES + TWO * (index & (size - ONE))
    first = load_acquire(ring, entry)
    if first & u64(3) != _DIRTY:
        return False
    out[0] = first >> 32
    out[1] = load_relaxed(ring, entry + ONE)
    fetch_or(ring, entry, _HARVESTED)
    return True


@compiled(nogil=True)
def ring_reset(ring: Words, size: U64, runs: Own, room: U64) -> U64:
    """Give back entries up to the first that is not harvested; writes what to re-protect; returns how many entries.

    ``runs``: word 0 is the number of runs, then three words each: slot, first offset, mask of the 64 pages from it.
    Neighbours of the same slot become one run, forwards and backwards. Ends early at ``room`` runs. O(entries).
    """
    index = load_relaxed(ring, RESET_INDEX)
    count = u64(0)
    found = u64(0)
    slot = u64(0)
    offset = u64(0)
    mask = u64(0)
    while count < size:
        entry = ENTRIES + TWO * (index & (size - ONE))
        first = load_acquire(ring, entry)
        if first & _HARVESTED == 0:
            break
        next_slot = first >> 32
        next_offset = load_relaxed(ring, entry + ONE)
        ahead = wrapping(next_offset - offset)
        behind = wrapping(offset - next_offset)
        joined = False
        if mask != 0 and next_slot == slot:
            if ahead < _BITS:
                mask |= ONE << ahead
                joined = True
            elif behind < _BITS and ((wrapping(mask << behind) >> behind) == mask):
                mask = wrapping(mask << behind) | ONE
                offset = next_offset
                joined = True
        if not joined:
            if mask != 0:
                if found + ONE >= room:
                    break
                runs[ONE + u64(3) * found] = slot
                runs[ONE + u64(3) * found + ONE] = offset
                runs[ONE + u64(3) * found + TWO] = mask
                found += ONE
            slot = next_slot
            offset = next_offset
            mask = u64(1)
        store_release(ring, entry, u64(0))
        index = (index + ONE) & _LOW
        store_release(ring, RESET_INDEX, index)
        count += ONE
    if mask != 0:
        runs[ONE + u64(3) * found] = slot
        runs[ONE + u64(3) * found + ONE] = offset
        runs[ONE + u64(3) * found + TWO] = mask
        found += ONE
    runs[0] = found
    return count


class DirtyEntry(NamedTuple):
    """What a harvested entry says: page ``offset`` of a slot was written."""

    slot: int
    offset: int
    as_id: int = 0

    @classmethod
    def of(cls, word: int, offset: int) -> DirtyEntry:
        """From the two words of an entry."""
        key = SlotKey.of(word)
        return cls(key.slot, offset, key.as_id)


class Run(NamedTuple):
    """Pages of one slot to write-protect again: bit i of ``mask`` is page ``offset + i``."""

    slot: int
    offset: int
    mask: int
    as_id: int = 0


def ring_size(nbytes: int, *, reserved: int = RESERVED_ENTRIES) -> int:
    """Entries of a ring of ``nbytes`` (of which KVM takes the low 32 bits), or MemslotError as the kernel refuses it.

    >>> ring_size(4096)
    256
    """
    taken = nbytes & 0xFFFFFFFF
    if taken == 0 or taken & (taken - 1):
        raise MemslotError(errno.EINVAL, f"dirty ring: {nbytes:#x} bytes are not a power of two")
    least = max(reserved * ENTRY_BYTES, _PAGE)
    if taken < least:
        raise MemslotError(errno.EINVAL, f"dirty ring: {nbytes:#x} bytes are less than {least:#x}")
    if taken > MAX_ENTRIES * ENTRY_BYTES:
        raise MemslotError(errno.E2BIG, f"dirty ring: {nbytes:#x} bytes are more than {MAX_ENTRIES * ENTRY_BYTES:#x}")
    return taken // ENTRY_BYTES


class DirtyRing:
    """The dirty ring of one vCPU, of ``size`` entries (a power of two), ``reserved`` of them beyond the soft limit.

    Three parties, one thread each: the vCPU pushes, user space harvests, an ioctl resets.

    >>> ring = DirtyRing(256)
    >>> [ring.push(3, page) for page in (7, 6, 9)]
    [False, False, False]
    >>> [entry.offset for entry in ring.harvest()]
    [7, 6, 9]
    >>> ring.reset()
    (3, [Run(slot=3, offset=6, mask=11, as_id=0)])
    """

    def __init__(self, size: int, *, reserved: int = RESERVED_ENTRIES) -> None:
        if not 1 <= size <= MAX_ENTRIES or size & (size - 1):
            raise UsageError(f"size: {size} entries are not a power of two of at most {MAX_ENTRIES}")
        if not 0 <= reserved < size:
            raise UsageError(f"reserved: {reserved} is not in 0..{size - 1}")
        self.size, self.soft_limit = size, size - reserved
        self.words = words(int(ENTRIES) + 2 * size)
        self._out = own(2)
        self._runs = own(1 + 3 * size)
        self._next = 0

    @property
    def used(self) -> int:
        """Entries that are dirty or harvested."""
        return int(ring_used(self.words))

    @property
    def soft_full(self) -> bool:
        """Whether the vCPU may not enter the guest: it exits with KVM_EXIT_DIRTY_RING_FULL."""
        return self.used >= self.soft_limit

    def push(self, slot: int, offset: int, as_id: int = 0) -> bool:
        """The vCPU wrote a page; returns whether the ring is soft full now."""
        if (slot | as_id) >> 16 or offset >> 64:
            raise UsageError(f"entry: slot {slot}, as_id {as_id}, offset {offset} are not 16, 16 and 64 bits")
        if self.used >= self.size:
            raise InvariantError(f"dirty ring: hard full at {self.size} entries")
        return bool(ring_push(self.words, self.size, self.soft_limit, SlotKey(as_id, slot).word, offset))

    def harvest(self) -> list[DirtyEntry]:
        """User space: take all dirty entries, in order. They come back to the vCPU by ``reset``."""
        found = []
        while ring_harvest(self.words, self.size, self._next & 0xFFFFFFFF, self._out):
            found.append(DirtyEntry.of(int(self._out[0]), int(self._out[1])))
            self._next += 1
        return found

    def reset(self) -> tuple[int, list[Run]]:
        """Give harvested entries back; returns how many, and what to write-protect again. O(entries)."""
        count = int(ring_reset(self.words, self.size, self._runs, self.size))
        runs = []
        for at in range(1, 1 + 3 * int(self._runs[0]), 3):
            slot, offset, mask = (int(self._runs[at + word]) for word in range(3))
            key = SlotKey.of(slot)
            runs.append(Run(key.slot, offset, mask, key.as_id))
        return count, runs

    def check(self) -> None:
        """Raise InvariantError unless entries from reset to vCPU are harvested ones, then dirty ones, no more."""
        first, used = peek(self.words, int(RESET_INDEX)), self.used
        if used > self.size:
            raise InvariantError(f"dirty ring: {used} entries are in use, of {self.size}")
        states = [peek(self.words, int(ENTRIES) + 2 * ((first + at) % self.size)) & 3 for at in range(self.size)]
        wanted = sorted(states[:used], key=lambda state: state & 2 == 0)
        if states[:used] != wanted or not all(states[:used]):
            raise InvariantError("dirty ring: a harvested entry follows one that is not, or one in use is invalid")
        if any(states[used:]):
            raise InvariantError("dirty ring: an entry beyond the vCPU's index is not invalid")
