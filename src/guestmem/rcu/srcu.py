"""Sleepable RCU: readers never lock, an updater waits until all readers that may hold the old thing have left.

Each reader has a word of its own (a cache line apart) that is 0 outside a read-side section, else the epoch in which
it entered; ``synchronize`` starts a new epoch and waits for every reader that is inside with an older one. A reader
may sleep inside. Idea: Linux ``kernel/rcu/srcutree.c``, there with counters per CPU and two indices; here the
readers (vCPUs) are few and known, so a word each is enough and shows who is late.

An exit wakes only if its section is older than the newest grace period that an updater waits for: else every exit of
a busy reader would wake the updater, which takes the core from the very reader it waits for.
"""

from __future__ import annotations

import time

from ..atomics import (
    compare_exchange,
    fence,
    fetch_add,
    load_acquire,
    load_relaxed,
    peek,
    poke,
    store_release,
    wait_for,
    wake,
)
from ..compiled import ONE, U64, Words, compiled, const, u64, words, wrapping
from ..errors import InvariantError, UsageError
from ..patience import GAVE_UP, LOOKS, deadline, patiently, time_left
from ..structure import Structure, name_fields

__all__ = [
    "SRCU",
    "Srcu",
    "srcu_enter",
    "srcu_exit",
    "srcu_expired",
    "srcu_oldest",
    "srcu_start",
    "srcu_synchronize",
    "srcu_wait",
    "srcu_wait_for",
    "srcu_words",
]

READER = Structure("reader", "a reader", size=8)
_INSIDE = READER.word("0 outside a section, else the epoch in which it entered")
_LINE = const(READER.size)
SRCU = Structure("srcu", "the state of SRCU")
_EPOCH = SRCU.line("the epoch; it is read at ``base`` itself")
_EXITS = SRCU.line("exits that woke a waiter; futex")
_WAITERS = SRCU.line("newest grace period that an updater waits for (its cookie)")
_READERS = SRCU.array(READER, "a line a reader")
name_fields(globals())

_EVERYBODY = const(0x7FFFFFFF)
_NEVER = const((1 << 64) - 1)


@compiled
def srcu_enter(srcu: Words, base: U64, reader: U64) -> None:
    """Enter a read-side section; not nested.

    The full fence pairs with the one in ``srcu_start``: either the updater sees this reader's word, or this reader
    sees all that the updater published before. A release store alone lets the section's loads go first.
    """
    epoch = load_relaxed(srcu, base)  # a stale epoch only makes an updater wait longer
    store_release(srcu, base + _READERS + _LINE * reader, epoch)
    fence()


@compiled
def srcu_exit(srcu: Words, base: U64, reader: U64) -> None:
    """Leave the read-side section and wake updaters that wait.

    Release: what the section read and wrote stays before it, so a waiting updater may free what it saw. The fence
    pairs with the one in ``srcu_wait``: the updater sees the section left, or this reader sees it waiting.
    """
    epoch = load_relaxed(srcu, base + _READERS + _LINE * reader)
    store_release(srcu, base + _READERS + _LINE * reader, u64(0))
    fence()
    if load_relaxed(srcu, base + _WAITERS) > epoch:  # else this section is none that anybody waits for
        fetch_add(srcu, base + _EXITS, ONE)
        wake(srcu, base + _EXITS, _EVERYBODY)


@compiled
def srcu_start(srcu: Words, base: U64) -> U64:
    """Start a grace period; returns a cookie for ``srcu_expired``. Readers that enter from now on are not waited for.

    The fences order what the caller published before the look at the readers' words (see ``srcu_enter``).
    """
    fence()
    epoch = fetch_add(srcu, base, ONE) + ONE
    fence()
    return wrapping(epoch)


@compiled
def srcu_expired(srcu: Words, base: U64, readers: U64, cookie: U64) -> bool:
    """Whether no reader is left that entered before the grace period ``cookie`` started. O(readers), no waiting.

    Acquire: what such a reader did is before what the caller does next (free, reuse).
    """
    reader = u64(0)
    while reader < readers:
        epoch = load_acquire(srcu, base + _READERS + _LINE * reader)
        if epoch != 0 and epoch < cookie:
            return False
        reader += ONE
    return True


@compiled
def srcu_oldest(srcu: Words, base: U64, readers: U64) -> U64:
    """The earliest epoch that a reader inside entered in, 2**64 - 1 if nobody is inside. O(readers), no waiting.

    Every grace period that was started before this call, with a cookie up to it, is over. Acquire, as above.
    """
    oldest = u64(0xFFFFFFFFFFFFFFFF)
    reader = u64(0)
    while reader < readers:
        epoch = load_acquire(srcu, base + _READERS + _LINE * reader)
        if epoch != 0 and epoch < oldest:
            oldest = epoch
        reader += ONE
    return oldest


@compiled(nogil=True)
def srcu_wait_for(srcu: Words, base: U64, readers: U64, cookie: U64, end: U64) -> U64:
    """Wait until the grace period ``cookie`` is over; returns how often it slept, with GAVE_UP after the time ``end``.

    Waits on the exit count, taken before the look at the readers, so that no exit in between is missed.
    """
    looks = u64(0)
    while looks < LOOKS:
        if srcu_expired(srcu, base, readers, cookie):
            return u64(0)
        looks += ONE
    slept = u64(0)
    newest = load_relaxed(srcu, base + _WAITERS)
    while newest < cookie:
        seen = compare_exchange(srcu, base + _WAITERS, newest, cookie)
        newest = cookie if seen == newest else seen
    fence()  # this updater counts as waiting before it looks at the readers: see srcu_exit
    while True:
        exits = load_acquire(srcu, base + _EXITS)
        if srcu_expired(srcu, base, readers, cookie):
            break
        left = time_left(end)
        if left == 0:
            return slept | GAVE_UP
        slept += ONE
        wait_for(srcu, base + _EXITS, exits, left)
    return slept


@compiled(nogil=True)
def srcu_wait(srcu: Words, base: U64, readers: U64, cookie: U64) -> U64:
    """Wait until the grace period ``cookie`` is over, however long; returns how often it slept."""
    return srcu_wait_for(srcu, base, readers, cookie, _NEVER)


@compiled(nogil=True)
def srcu_synchronize(srcu: Words, base: U64, readers: U64) -> U64:
    """Wait until every reader that is inside now has left once; returns how often it slept."""
    return srcu_wait(srcu, base, readers, srcu_start(srcu, base))


def srcu_words(readers: int) -> int:
    """Words that the SRCU state of ``readers`` readers takes."""
    return 24 + 8 * readers


class Srcu:
    """One SRCU domain and its words; what a VM's vCPUs and updaters share.

    ``readers`` is fixed. Reader 0 is, by habit, the Python thread.

    >>> srcu = Srcu(readers=2)
    >>> srcu.synchronize()  # nobody inside: does not sleep
    0
    >>> srcu.enter(1)
    >>> srcu.inside()
    [1]
    >>> srcu.exit(1)
    >>> srcu.check()
    """

    def __init__(self, readers: int) -> None:
        if readers < 1:
            raise UsageError(f"readers: {readers} is not at least 1")
        self.readers = readers
        self.words = words(srcu_words(readers))
        poke(self.words, 0, 1)  # a reader's word 0 means outside, so epochs start at 1

    def enter(self, reader: int) -> None:
        """Enter reader ``reader``'s section (from Python; vCPUs call ``srcu_enter``)."""
        srcu_enter(self.words, 0, reader)

    def exit(self, reader: int) -> None:
        """Leave reader ``reader``'s section."""
        srcu_exit(self.words, 0, reader)

    def synchronize(self) -> int:
        """Wait for a grace period; returns how often it slept. Ctrl-C ends the wait, not the grace period."""
        cookie = srcu_start(self.words, 0)
        return patiently(lambda: srcu_wait_for(self.words, 0, self.readers, cookie, deadline()))

    def synchronize_within(self, nanoseconds: int) -> bool:
        """Wait for a grace period, but only for so long; whether it is over."""
        cookie = srcu_start(self.words, 0)
        return not int(srcu_wait_for(self.words, 0, self.readers, cookie, time.monotonic_ns() + nanoseconds)) & int(
            GAVE_UP
        )

    def inside(self) -> list[int]:
        """Readers that are inside a section right now."""
        return [reader for reader in range(self.readers) if peek(self.words, 24 + 8 * reader)]

    def check(self) -> None:
        """Raise InvariantError unless no reader is ahead of the epoch."""
        epoch = peek(self.words, 0)
        for reader in range(self.readers):
            if peek(self.words, 24 + 8 * reader) > epoch:
                raise InvariantError(f"srcu: reader {reader} is in epoch {peek(self.words, 24 + 8 * reader)} > {epoch}")
