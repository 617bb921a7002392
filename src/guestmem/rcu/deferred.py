"""Deferred free: what readers may still look at is put aside, and handed back when its grace period is over.

A bounded queue of (cookie, item) on top of SRCU. An item is a word: a table page, a range node, a slot. The updater
polls (``reclaim``) or waits (``reclaim_wait``); nobody is called back. Idea: Linux ``call_srcu()`` and its polled
form, ``start_poll_synchronize_srcu()`` and ``poll_state_synchronize_srcu()`` (``kernel/rcu/srcutree.c``).

One updater at a time: whoever calls these functions holds the lock that orders updates. The words are atomics so
that others may look (``check()``), not so that two may write.

Layout, in words from ``base``: +0 items handed back, +1 items put in, +2 and +3 sums of these items, +4 highest cookie
handed back, +8 + 2 i: cookie and item of place i, which is the count modulo the capacity, a power of two.
"""

from __future__ import annotations

from ..atomics import load_relaxed, peek, store_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, own, u64, words, wrapping
from ..errors import InvariantError, UsageError
from .srcu import Srcu, srcu_oldest, srcu_start, srcu_wait

__all__ = ["Deferred", "defer", "deferred_words", "reclaim", "reclaim_wait"]

_TAKEN = const(0)
_PUT = const(1)
_SUM_TAKEN = const(2)
_SUM_PUT = const(3)
_HIGHEST = const(4)
_PLACES = const(8)


@compiled
def defer(queue: Words, base: U64, capacity: U64, cookie: U64, item: U64) -> bool:
    """Put ``item`` aside until the grace period ``cookie`` is over; False if the queue is full. O(1).

    The item must be unreachable for new readers before ``cookie`` was taken with ``srcu_start``. Several items may
    share a cookie.
    """
    put = load_relaxed(queue, base + _PUT)
    if put - load_relaxed(queue, base + _TAKEN) >= capacity:
        return False
    place = base + _PLACES + ((put & (capacity - ONE)) << 1)
    store_relaxed(queue, place, cookie)
    store_relaxed(queue, place + ONE, item)
    store_relaxed(queue, base + _SUM_PUT, wrapping(load_relaxed(queue, base + _SUM_PUT) + item))
    store_relaxed(queue, base + _PUT, put + ONE)
    return True


@compiled
def reclaim(
    queue: Words, base: U64, capacity: U64, srcu: Words, srcu_base: U64, readers: U64, freed: Own, limit: U64
) -> U64:
    """Hand back, oldest first, up to ``limit`` items whose grace period is over; returns how many ``freed`` holds.

    Never waits. O(readers + items handed back): one look at the readers serves all items, since every cookie in the
    queue was taken before it.
    """
    return _hand_back(queue, base, capacity, freed, limit, srcu_oldest(srcu, srcu_base, readers))


@compiled
def _hand_back(queue: Words, base: U64, capacity: U64, freed: Own, limit: U64, oldest: U64) -> U64:
    """Hand back, oldest first, up to ``limit`` items with cookies up to ``oldest``; returns how many."""
    taken = load_relaxed(queue, base + _TAKEN)
    put = load_relaxed(queue, base + _PUT)
    total = load_relaxed(queue, base + _SUM_TAKEN)
    highest = load_relaxed(queue, base + _HIGHEST)
    count = u64(0)
    while count < limit and taken < put:
        place = base + _PLACES + ((taken & (capacity - ONE)) << 1)
        cookie = load_relaxed(queue, place)
        if cookie > oldest:
            break
        item = load_relaxed(queue, place + ONE)
        freed[count] = item
        if cookie > highest:
            highest = cookie
        total = wrapping(total + item)
        count += ONE
        taken += ONE
    store_relaxed(queue, base + _HIGHEST, highest)
    store_relaxed(queue, base + _SUM_TAKEN, total)
    store_relaxed(queue, base + _TAKEN, taken)
    return count


@compiled(nogil=True)
def reclaim_wait(
    queue: Words, base: U64, capacity: U64, srcu: Words, srcu_base: U64, readers: U64, freed: Own, limit: U64
) -> U64:
    """As ``reclaim``, but waits until ``limit`` items, or all there are, can be handed back.

    The caller must not be inside a read-side section of ``srcu``: it would wait for itself.
    """
    taken = load_relaxed(queue, base + _TAKEN)
    put = load_relaxed(queue, base + _PUT)
    last = u64(0)
    count = u64(0)
    while count < limit and taken < put:
        cookie = load_relaxed(queue, base + _PLACES + ((taken & (capacity - ONE)) << 1))
        if cookie > last:
            last = cookie
        count += ONE
        taken += ONE
    srcu_wait(srcu, srcu_base, readers, last)
    # What was waited for, without another look: a reader that is just entering may write down an epoch from before.
    return _hand_back(queue, base, capacity, freed, limit, last)


def deferred_words(capacity: int) -> int:
    """Words that a queue of ``capacity`` items takes."""
    return 8 + 2 * capacity


class Deferred:
    """A queue of items that wait for their grace period, for one updater at a time.

    ``capacity`` is a power of two. Items are words (0 to 2**64 - 1).

    >>> srcu = Srcu(readers=1)
    >>> deferred = Deferred(srcu, capacity=4)
    >>> srcu.enter(0)
    >>> deferred.defer(0x1000)
    True
    >>> deferred.reclaim()  # reader 0 may still look at it
    []
    >>> srcu.exit(0)
    >>> deferred.reclaim()
    [4096]
    """

    def __init__(self, srcu: Srcu, capacity: int) -> None:
        if capacity < 1 or capacity & (capacity - 1):
            raise UsageError(f"capacity: {capacity} is not a power of two")
        self.srcu, self.capacity = srcu, capacity
        self.words = words(deferred_words(capacity))
        self._freed = own(capacity)

    def __len__(self) -> int:
        return int(peek(self.words, 1) - peek(self.words, 0))

    def defer(self, item: int, cookie: int | None = None) -> bool:
        """Put ``item`` aside; False if the queue is full (then reclaim, or drain, and try again). O(1).

        ``cookie``: of ``srcu.start()``, taken after the item was made unreachable; without it, one is taken now.
        """
        if cookie is None:
            cookie = srcu_start(self.srcu.words, 0)
        return bool(defer(self.words, 0, self.capacity, cookie, item))

    def reclaim(self) -> list[int]:
        """Items whose grace period is over, oldest first. Never waits. O(readers + items)."""
        return self._handed_back(wait=False)

    def drain(self) -> list[int]:
        """All items, after waiting for their grace periods without the GIL; the queue is empty then."""
        return self._handed_back(wait=True)

    def _handed_back(self, *, wait: bool) -> list[int]:
        function = reclaim_wait if wait else reclaim
        srcu, freed = self.srcu, self._freed
        count = function(self.words, 0, self.capacity, srcu.words, 0, srcu.readers, freed, self.capacity)
        return [int(freed[place]) for place in range(count)]

    def check(self) -> None:
        """Raise InvariantError unless the queue is sound. O(capacity), by the updater or under its lock.

        Nothing is lost (as many items, and the same sum, went in as came out or wait), nothing waits twice, and
        nothing was handed back early: no reader is inside with an epoch before a cookie that was handed back. The
        last is exact only while no reader is just entering, which may still write down the epoch before.
        """
        taken, put, sum_taken, sum_put, highest = (peek(self.words, place) for place in range(5))
        if not 0 <= put - taken <= self.capacity:
            raise InvariantError(f"deferred: {put} items in and {taken} out, but room for {self.capacity} between")
        places = [8 + 2 * (count & (self.capacity - 1)) for count in range(taken, put)]
        items = [peek(self.words, place + 1) for place in places]
        if len(set(items)) < len(items):
            twice = next(item for item in items if items.count(item) > 1)
            raise InvariantError(f"deferred: item {twice:#x} waits twice and would be freed twice")
        if (sum_taken + sum(items) - sum_put) & ((1 << 64) - 1):
            raise InvariantError("deferred: the items handed back and those that wait are not those put in")
        epoch = peek(self.srcu.words, 0)
        for place in places:
            if peek(self.words, place) > epoch:
                raise InvariantError(f"deferred: cookie {peek(self.words, place)} is ahead of epoch {epoch}")
        oldest = srcu_oldest(self.srcu.words, 0, self.srcu.readers)
        if oldest < highest:
            raise InvariantError(f"deferred: cookie {highest} was handed back, a reader is inside since {oldest}")
