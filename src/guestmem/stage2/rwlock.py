"""The reader-writer lock of a table (KVM's ``mmu_lock``): faults read, everything else writes.

A reader has a word of its own, a cache line apart, so that readers on two cores do not share a line; the writer
raises a flag and waits for each reader's word. KVM's lock spins; who waits here looks some times, then sleeps. Idea:
``include/linux/percpu-rwsem.h``, without its RCU part. A writer that waits holds new readers off.
"""

from __future__ import annotations

from ..atomics import compare_exchange, exchange, fence, fetch_add, load_acquire, store_release, wait, wake
from ..compiled import ONE, TWO, U64, Words, compiled, const, u64
from ..patience import LOOKS
from ..structure import Structure, name_fields

__all__ = ["LOCK", "read_lock", "read_unlock", "rwlock_words", "write_lock", "write_unlock"]

READER = Structure("reader", "a reader", size=8)
_INSIDE = READER.word("1: it holds the lock, or is about to")
LOCK = Structure("lock", "a reader-writer lock")
_WRITER = LOCK.line("0 none, 1 one, 2 and somebody waits for it; it is at ``base`` itself")
_EXITS = LOCK.line("exits that a writer may wait on; futex")
_READERS = LOCK.array(READER, "a line a reader")
name_fields(globals())

_EVERYBODY = const(0x7FFFFFFF)


def rwlock_words(readers: int) -> int:
    """Words that a lock of ``readers`` readers takes."""
    return int(_READERS) + READER.size * readers


@compiled(nogil=True)
def read_lock(lock: Words, base: U64, reader: U64) -> U64:
    """Lock for reading, not nested; returns how often it slept.

    The fence pairs with the one in ``write_lock``: this reader sees the writer, or the writer sees this reader.
    """
    slept = u64(0)
    mine = base + _READERS + (reader << 3)
    while True:
        store_release(lock, mine, ONE)
        fence()
        if load_acquire(lock, base) == 0:
            return slept
        store_release(lock, mine, u64(0))
        fence()
        fetch_add(lock, base + _EXITS, ONE)
        wake(lock, base + _EXITS, _EVERYBODY)
        slept += _wait_for_writer(lock, base)


@compiled
def _wait_for_writer(lock: Words, base: U64) -> U64:
    """Wait until there is no writer; returns how often it slept."""
    slept = u64(0)
    looks = u64(0)
    while True:
        writer = load_acquire(lock, base)
        if writer == 0:
            return slept
        looks += ONE
        if looks < LOOKS:
            continue
        if writer == 1 and compare_exchange(lock, base, ONE, TWO) != 1:
            continue
        slept += ONE
        wait(lock, base, TWO)


@compiled
def read_unlock(lock: Words, base: U64, reader: U64) -> None:
    """Unlock. Release: all that the reader did is before what the writer does next."""
    store_release(lock, base + _READERS + (reader << 3), u64(0))
    fence()
    if load_acquire(lock, base) != 0:
        fetch_add(lock, base + _EXITS, ONE)
        wake(lock, base + _EXITS, _EVERYBODY)


@compiled(nogil=True)
def write_lock(lock: Words, base: U64, readers: U64) -> U64:
    """Lock for writing; returns how often it slept. O(readers)."""
    slept = u64(0)
    while compare_exchange(lock, base, u64(0), ONE) != 0:
        slept += _wait_for_writer(lock, base)
    fence()
    reader = u64(0)
    looks = u64(0)
    while reader < readers:
        exits = load_acquire(lock, base + _EXITS)
        if load_acquire(lock, base + _READERS + (reader << 3)) == 0:
            reader += ONE
        elif looks + ONE < LOOKS:
            looks += ONE
        else:
            slept += ONE
            wait(lock, base + _EXITS, exits)
    return slept


@compiled
def write_unlock(lock: Words, base: U64) -> None:
    """Unlock, and wake all who wait for the writer to go."""
    if exchange(lock, base, u64(0)) == 2:
        wake(lock, base, _EVERYBODY)
