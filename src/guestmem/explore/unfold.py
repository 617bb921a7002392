"""What a thread's own part makes of a memory, compiled: from actions, of which Python is asked once a part.

An *action* is what a thread's operation, or a store that waits in its buffer, does. Some write a value, whatever is
there; some do one thing or another by the word they see, of which Python is asked once for each value; some do not
touch memory. So Python is asked once a thread's part, for all memories that it meets, and these are made here. A memory
is a row of the numbers of its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..compiled import U64, Own
from .asking import ACTIONS, LAST, MEMORIES, MOVES, PENDING, PUT, SEE, SEEN, ask, pair
from .packed import inside, kernel

if TYPE_CHECKING:
    Halves = Any
    """Numbers of 32 bits in an array."""
    _u = int
else:
    from numpy import uint64 as _u

__all__ = ["NO_ACTION", "Unfolded", "add_memory", "move_memories", "unfold"]

_Z = _u(0)
_1 = _u(1)
_29 = _u(29)
_A = _u(0xFF51AFD7ED558CCD)
_SEED = _u(0x9E3779B97F4A7C15)

NO_ACTION = _u(1)
"""In the place of the first action: there is none."""


class Unfolded(NamedTuple):
    """Arrays of what is known.

    By own part its first action (0: not known, ``NO_ACTION``, PENDING). By action what it is, the point, the number of
    the value that it writes, the own part after it, whom it wakes (as in a move). By what an action does when it sees a
    value, the number of the value that it writes or 0, and the own part after it, 0 if it must wait. The memories, and
    their hash table.
    """

    first: Halves
    what: Halves
    at: Halves
    value: Halves
    then: Halves
    wakes: Halves
    puts: Halves
    goes: Halves
    memories: Halves
    places: Halves


@inside
def _place(memories: Halves, places: Halves, size: U64, row: U64, at: U64, value: U64) -> U64:
    """Where in the hash table a memory is, or would be: row ``row`` with one value changed."""
    h = _SEED
    for k in range(size):
        here = value if _u(k) == at else _u(memories[row + k])
        h = (h ^ here) * _A
        h ^= h >> _29
    mask = _u(len(places)) - _1
    i = h & mask
    while places[i] != _Z:
        other = (_u(places[i]) - _1) * size
        same = True
        for k in range(size):
            here = value if _u(k) == at else _u(memories[row + k])
            if _u(memories[other + k]) != here:
                same = False
                break
        if same:
            break
        i = (i + _1) & mask
    return i


@inside
def _written(memories: Halves, places: Halves, counts: Own, size: U64, memory: U64, at: U64, value: U64) -> U64:
    """The memory with one value changed."""
    row = memory * size
    if _u(memories[row + at]) == value:
        return memory
    i = _place(memories, places, size, row, at, value)
    if places[i] == _Z:
        n = counts[MEMORIES]
        for k in range(size):
            memories[n * size + k] = memories[row + k]
        memories[n * size + at] = value
        counts[MEMORIES] = n + _1
        places[i] = n + _1
    return _u(places[i]) - _1


@inside
def unfold(
    un: Unfolded,
    mshared: Halves,
    mlocal: Halves,
    minfo: Halves,
    pkeys: Own,
    pvalues: Halves,
    asked: Own,
    counts: Own,
    own: U64,
    memory: U64,
    size: U64,
) -> U64:
    """The first of the moves that an own part has on a memory, all written; 0: none; PENDING if Python was asked."""
    first = _u(un.first[own])
    if first == _Z:
        un.first[own] = PENDING
        ask(asked, counts, ACTIONS, own, _Z, _Z)
        return PENDING
    if first == PENDING:
        return PENDING
    if first == NO_ACTION:
        return _Z
    row = memory * size
    whole = True
    a = first
    while True:
        kind = _u(un.what[a])
        if kind & SEE:
            does = pair(pkeys, pvalues, asked, counts, SEEN, a, _u(un.memories[row + _u(un.at[a])]))
            whole = whole and does != PENDING
        if kind & LAST:
            break
        a += _1
    if not whole:
        return PENDING
    m = counts[MOVES]
    begun = m
    a = first
    while True:
        kind = _u(un.what[a])
        then = _u(un.then[a])
        at = _u(un.at[a])
        value = _Z
        if kind & SEE:
            does = pair(pkeys, pvalues, asked, counts, SEEN, a, _u(un.memories[row + at]))
            then = _u(un.goes[does])
            value = _u(un.puts[does])
        elif kind & PUT:
            value = _u(un.value[a])
        if then != _Z:
            after = memory
            if value != _Z:
                after = _written(un.memories, un.places, counts, size, memory, at, value)
            mshared[m] = after
            mlocal[m] = then
            minfo[m] = un.wakes[a]
            m += _1
        if kind & LAST:
            break
        a += _1
    if m == begun:
        return _Z
    minfo[m - _1] = _u(minfo[m - _1]) | LAST
    counts[MOVES] = m
    return begun


@kernel
def add_memory(memories: Halves, places: Halves, size: U64, n: U64) -> None:
    """Row ``n``, which was just written, is a memory that is not there yet."""
    i = _place(memories, places, size, n * size, _Z, _u(memories[n * size]))
    places[i] = n + _1


@kernel
def move_memories(memories: Halves, places: Halves, size: U64, n: U64) -> None:
    """Fill a new hash table with the memories. O(memories)."""
    for index in range(n):
        row = _u(index) * size
        i = _place(memories, places, size, row, _Z, _u(memories[row]))
        places[i] = _u(index) + _1
