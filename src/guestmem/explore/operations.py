"""What a thread of a model does at a schedule point, by number: the operations of ``atomics``, and a model's own lock.

Numbers are ordered so that one comparison tells loads, stores and read-modify-writes apart.
"""

from __future__ import annotations

from ..units import U64_MAX

__all__ = [
    "ADD",
    "AND",
    "ASLEEP",
    "CODES",
    "COMPARE_EXCHANGE",
    "ENDED",
    "EXCHANGE",
    "FAILED",
    "FENCE",
    "LOAD_ACQUIRE",
    "LOAD_RELAXED",
    "LOCK",
    "NAMES",
    "OR",
    "STORE_RELAXED",
    "STORE_RELEASE",
    "UNLOCK",
    "WAIT",
    "WAKE",
    "after",
    "same_futex",
]

LOAD_RELAXED, LOAD_ACQUIRE = 0, 1
STORE_RELAXED, STORE_RELEASE, UNLOCK = 2, 3, 4
COMPARE_EXCHANGE, EXCHANGE, ADD, AND, OR = 5, 6, 7, 8, 9
LOCK, FENCE, WAIT, WAKE = 10, 11, 12, 13
ENDED, ASLEEP, FAILED = -1, -2, -3
"""What a thread is that has no operation: returned, waiting to be woken, raised an exception."""

CODES = {
    "load_relaxed": LOAD_RELAXED,
    "load_acquire": LOAD_ACQUIRE,
    "store_relaxed": STORE_RELAXED,
    "store_release": STORE_RELEASE,
    "compare_exchange": COMPARE_EXCHANGE,
    "exchange": EXCHANGE,
    "fetch_add": ADD,
    "fetch_and": AND,
    "fetch_or": OR,
    "fence": FENCE,
    "wait": WAIT,
    "wake": WAKE,
    "host_load": LOAD_RELAXED,
    "host_store": STORE_RELAXED,
    "host_fetch_add": ADD,
    "host_fetch_or": OR,
    "lock": LOCK,
    "unlock": UNLOCK,
}
"""By the name that ``Scheduler.step`` is handed; the last two are a model's own (``Scene.lock``)."""

NAMES = {
    LOAD_RELAXED: "load",
    LOAD_ACQUIRE: "load acquire",
    STORE_RELAXED: "store",
    STORE_RELEASE: "store release",
    UNLOCK: "unlock",
    COMPARE_EXCHANGE: "compare-exchange",
    EXCHANGE: "exchange",
    ADD: "add",
    AND: "and",
    OR: "or",
    LOCK: "lock",
    FENCE: "fence",
    WAIT: "wait",
    WAKE: "wake",
}
"""For people."""


def after(code: int, seen: int, first: int, second: int) -> int:
    """The word after a store or a read-modify-write that found ``seen``.

    >>> after(COMPARE_EXCHANGE, 3, 3, 9), after(COMPARE_EXCHANGE, 4, 3, 9), after(ADD, 1, 2**64 - 1, 0)
    (9, 4, 0)
    """
    if code in {STORE_RELAXED, STORE_RELEASE, EXCHANGE}:
        return first
    if code == COMPARE_EXCHANGE:
        return second if seen == first else seen
    if code == ADD:
        return (seen + first) & U64_MAX
    if code == AND:
        return seen & first
    return seen | first if code == OR else 0


def same_futex(seen: int, expected: int) -> bool:
    """Whether a wait falls asleep: a futex has the low 32 bits only.

    >>> same_futex(1 << 32 | 5, 5)
    True
    """
    return (seen ^ expected) & 0xFFFFFFFF == 0
