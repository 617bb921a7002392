"""A file's invalidate lock: faults read, whatever changes what they find writes.

One word: readers in the low bits, and WRITER, which keeps new readers out while its owner waits for those inside. Who
waits sleeps on the word. Source of the rules: ``filemap_invalidate_lock()``, Linux ``include/linux/fs.h``.
"""

from __future__ import annotations

from ..atomics import compare_exchange, fetch_add, fetch_and, load_acquire, load_relaxed, wait, wake
from ..compiled import U64, Words, compiled, const, u64
from .layout import LOCK

__all__ = ["read_lock", "read_unlock", "write_lock", "write_unlock"]

_ONE = const(1)
_MINUS_ONE = const((1 << 64) - 1)
_WRITER = const(1 << 31)
_READERS = const((1 << 31) - 1)
_EVERYBODY = const(0x7FFFFFFF)


@compiled(nogil=True)
def read_lock(inode: Words) -> U64:
    """Lock for reading, not nested; returns how often it slept. Acquire, by the exchange."""
    slept = u64(0)
    while True:
        seen = load_relaxed(inode, LOCK)
        if seen & _WRITER == 0:
            if compare_exchange(inode, LOCK, seen, seen + _ONE) == seen:
                return slept
        else:
            slept += _ONE
            wait(inode, LOCK, seen)


@compiled
def read_unlock(inode: Words) -> None:
    """Unlock. Release, by the addition: what the reader did is before what the writer does next."""
    if fetch_add(inode, LOCK, _MINUS_ONE) == _WRITER | _ONE:
        wake(inode, LOCK, _EVERYBODY)


@compiled(nogil=True)
def write_lock(inode: Words) -> U64:
    """Lock for writing; returns how often it slept. Acquire: the last reader's unlock is a release."""
    slept = u64(0)
    while True:
        seen = load_relaxed(inode, LOCK)
        if seen & _WRITER == 0:
            if compare_exchange(inode, LOCK, seen, seen | _WRITER) == seen:
                break
        else:
            slept += _ONE
            wait(inode, LOCK, seen)
    while True:
        seen = load_acquire(inode, LOCK)
        if seen == _WRITER:
            return slept
        slept += _ONE
        wait(inode, LOCK, seen)


@compiled
def write_unlock(inode: Words) -> None:
    """Unlock, and wake all who wait."""
    fetch_and(inode, LOCK, _READERS)
    wake(inode, LOCK, _EVERYBODY)
