"""Numbers packed in arrays, and found again by hash: states, and rows of two numbers, for the compiled search.

A table of states holds numbers of states plus one; a table of rows holds keys of 64 bits. 0: nothing there. The bits
of a place that no number needs, for a table has fewer states than places, hold some of the state's hash: a look at
another state is needed for one in thousands of those that stand in the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .._numba import dispatcher
from ..compiled import U64, Own

if TYPE_CHECKING:
    Halves = Any
    """Numbers of 32 bits in an array."""
    _u = int
else:
    from numpy import uint64 as _u

__all__ = [
    "add_first",
    "add_state",
    "fill",
    "find_state",
    "hash_of",
    "inside",
    "kernel",
    "move_rows",
    "move_states",
    "slot_of",
]

_Z = _u(0)
_1 = _u(1)
_2 = _u(2)
_32 = _u(32)
_33 = _u(33)
_LOW = _u(0xFFFFFFFF)
_A = _u(0xFF51AFD7ED558CCD)
_B = _u(0xC4CEB9FE1A85EC53)
_SEED = _u(0x9E3779B97F4A7C15)

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(function: _F) -> _F:
    """A compiled function that Python calls, without the lock."""
    return cast("_F", dispatcher(function, nogil=True))


def inside(function: _F) -> _F:
    """One that only others of these call."""
    return cast("_F", dispatcher(function, nogil=True, inline=True))


@inside
def _mix(x: U64) -> U64:
    x ^= x >> _33
    x *= _A
    x ^= x >> _33
    x *= _B
    return x ^ (x >> _33)


@inside
def slot_of(keys: Own, key: U64) -> U64:
    """Where a key is, or would be."""
    mask = _u(len(keys)) - _1
    i = _mix(key) & mask
    while keys[i] != _Z and keys[i] != key:
        i = (i + _1) & mask
    return i


@inside
def hash_of(row: Halves, at: U64, width: U64) -> U64:
    """Of a row of ``width`` numbers from index ``at`` on."""
    h = _SEED
    for k in range(width):
        h = _mix(h ^ _u(row[at + k]))
    return h


@inside
def _find(states: Halves, table: Halves, row: Halves, width: U64, compared: U64, h: U64) -> U64:
    """The place in a table of states where a row with a hash is, or would be."""
    mask = _u(len(table)) - _1
    tag = (h >> _32) & _LOW & ~mask
    i = h & mask
    while True:
        here = _u(table[i])
        if here == _Z:
            return i
        if (here ^ tag) & ~mask == _Z:
            at = ((here & mask) - _1) * width
            same = True
            for k in range(compared):
                if states[at + k] != row[k]:
                    same = False
                    break
            if same:
                return i
        i = (i + _1) & mask


@inside
def add_state(
    states: Halves, parents: Halves, table: Halves, row: Halves, width: U64, parent: U64, bounded: U64, n: U64
) -> U64:
    """Add a state unless it is there; how many there are. Of a bounded one its last number is the cost: least wins."""
    mask = _u(len(table)) - _1
    compared = width - bounded
    h = hash_of(row, _Z, compared)
    i = _find(states, table, row, width, compared, h)
    here = _u(table[i]) & mask
    if here != _Z and (bounded == _Z or states[(here - _1) * width + compared] <= row[compared]):
        return n
    at = n * width
    for k in range(width):
        states[at + k] = row[k]
    parents[n] = parent
    table[i] = ((h >> _32) & _LOW & ~mask) | (n + _1)
    return n + _1


@inside
def find_state(states: Halves, table: Halves, row: Halves, width: U64, bounded: U64) -> U64:
    """The number of a state that is there."""
    compared = width - bounded
    i = _find(states, table, row, width, compared, hash_of(row, _Z, compared))
    return (_u(table[i]) & (_u(len(table)) - _1)) - _1


@kernel
def add_first(states: Halves, parents: Halves, table: Halves, row: Halves, width: U64, bounded: U64) -> U64:
    """Add the first state."""
    return add_state(states, parents, table, row, width, _Z, bounded, _Z)


@kernel
def move_states(states: Halves, table: Halves, width: U64, bounded: U64, n: U64) -> None:
    """Fill a new hash table with states. O(states)."""
    mask = _u(len(table)) - _1
    compared = width - bounded
    for index in range(n):
        at = _u(index) * width
        h = hash_of(states, at, compared)
        tag = (h >> _32) & _LOW & ~mask
        i = h & mask
        while table[i] != _Z:
            if bounded != _Z and (_u(table[i]) ^ tag) & ~mask == _Z:
                # Of two that differ in the cost the later one is the better.
                other = ((_u(table[i]) & mask) - _1) * width
                same = True
                for k in range(compared):
                    if states[other + k] != states[at + k]:
                        same = False
                if same:
                    break
            i = (i + _1) & mask
        table[i] = tag | (_u(index) + _1)


@kernel
def move_rows(keys: Own, values: Halves, new_keys: Own, new_values: Halves) -> None:
    """Move rows to a larger table. O(rows)."""
    for j in range(_u(len(keys))):
        if keys[j] != _Z:
            i = slot_of(new_keys, keys[j])
            new_keys[i] = keys[j]
            new_values[i] = values[j]


@kernel
def fill(values: Halves, answers: Own) -> None:
    """Put answers in their places: (place, value)."""
    for j in range(_u(len(answers)) // _2):
        values[answers[_2 * j]] = answers[_2 * j + _1]
