"""What the compiled search over states asks of Python, and the numbers that both sides know.

A question is a kind, above bit 60, and one or two numbers; its answer goes to a place in an array, where PENDING is
until then. ``rows.Rows`` has the answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..compiled import U64, Own
from .packed import inside, slot_of

if TYPE_CHECKING:
    Halves = Any
    """Numbers of 32 bits in an array."""
    _u = int
else:
    from numpy import uint64 as _u

__all__ = [
    "ACTIONS",
    "ALL",
    "ALONE",
    "ASKED",
    "ASLEEP",
    "BROKEN",
    "CHANGED",
    "COUNTS",
    "ENDED",
    "FAILED",
    "FORGET",
    "FOUND",
    "HOLDS",
    "LAST",
    "LOOK",
    "MAY_RISE",
    "MEMORIES",
    "MOVES",
    "OFF",
    "OLDEST",
    "PAIRS",
    "PASSED",
    "PENDING",
    "POINTS",
    "PUT",
    "RISE",
    "ROWS",
    "RUNS",
    "SAID",
    "SEE",
    "SEEN",
    "SHARED",
    "STATES",
    "STOP",
    "TIMED",
    "TOLD",
    "VERDICT",
    "WAKE",
    "ask",
    "pair",
]

_Z = _u(0)
_1 = _u(1)
_2 = _u(2)
_32 = _u(32)
_60 = _u(60)

PENDING = _u(0xFFFFFFFF)
"""In the place of a row that Python was asked for."""

RUNS, ASLEEP, FAILED, TIMED, MAY_RISE, TOLD = (_u(1 << bit) for bit in range(6))
"""What a thread's own part is: it may have moves, sleeps, has failed; sleeps with a timeout, may wake for no reason."""

LAST = _u(1)
"""In a move, and in an action: the last one of its row. In a move, then five bits: how many it wakes; above them: 1 +
on which point, or 0."""

SEE, PUT = _u(2), _u(4)
"""In an action: what it does depends on the word it sees; it writes a word. Neither: memory does not matter to it."""

SHARED, WAKE, OLDEST, FORGET, LOOK, VERDICT, SEEN, ALONE, RISE, ACTIONS = (_u(kind) for kind in range(1, 11))
"""What Python is asked: of pairs of numbers (up to ``SEEN``), and of one thread's own part."""

HOLDS, BROKEN, SAID = _u(1), _u(2), _u(3)
"""What a verdict says."""

COUNTS = 14
"""Length of ``counts``, which has: how many states; questions, states put off; moves so far; found, ended; rows, pairs;
where it stopped, changes of a sweep; moves and memories that are known; with hashes in place of states, how many there
are of all levels, and how many others new ones passed by.
"""
STATES, ASKED, OFF, POINTS, FOUND, ENDED, ROWS = (_u(i) for i in range(7))
PAIRS, STOP, CHANGED, MOVES, MEMORIES, ALL, PASSED = (_u(i) for i in range(7, COUNTS))


@inside
def ask(asked: Own, counts: Own, kind: U64, a: U64, b: U64, slot: U64) -> None:
    """Ask, for the answer to be put in a slot."""
    k = counts[ASKED] * _2
    asked[k] = kind << _60 | a << _32 | b
    asked[k + _1] = slot
    counts[ASKED] += _1


@inside
def pair(pkeys: Own, pvalues: Halves, asked: Own, counts: Own, kind: U64, a: U64, b: U64) -> U64:
    """What two numbers come to; PENDING if Python was asked."""
    key = kind << _60 | a << _32 | b
    i = slot_of(pkeys, key)
    if pkeys[i] == _Z:
        pkeys[i] = key
        pvalues[i] = PENDING
        counts[PAIRS] += _1
        ask(asked, counts, kind, a, b, i)
    return _u(pvalues[i])
