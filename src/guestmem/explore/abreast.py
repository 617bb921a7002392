"""Expanding states in several threads at once, compiled: what ``expand.py`` does, where every answer is known.

Threads take states off one cursor, and add what they lead to, to one table. Rows and answers are only read; a state
that needs one which is missing, that is an end, or in which something is wrong for the first time, is put off, for
``expand`` to do alone. So both count the same.

Order: a thread writes a state, then its place in the table by a compare-and-exchange (release); who finds a place
(acquire) finds the state behind it. Two that come to one state at once both try an empty place: the second one fails,
looks at that place again, and finds the first one's. Places are halves of a word, which is exchanged whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .._intrinsics import compare_exchange, fetch_add, load_acquire
from ..compiled import U64, Own, Words
from .asking import (
    ASLEEP,
    FAILED,
    FORGET,
    HOLDS,
    LAST,
    LOOK,
    MAY_RISE,
    OLDEST,
    PENDING,
    RUNS,
    SAID,
    SHARED,
    TIMED,
    TOLD,
    VERDICT,
    WAKE,
)
from .packed import hash_of, inside, kernel, slot_of

if TYPE_CHECKING:
    Halves = Any
    """Numbers of 32 bits in an array."""
    _u = int
else:
    from numpy import uint64 as _u

__all__ = ["BLOCK", "COUNT", "CURSOR", "END", "FULL", "NEXT", "OFF", "POINTS", "Known", "Mine", "expand_known", "move"]

_Z = _u(0)
_1 = _u(1)
_5 = _u(5)
_31 = _u(31)
_32 = _u(32)
_60 = _u(60)
_LOW = _u(0xFFFFFFFF)
_TAKEN = _u(64)
"""States that a thread takes off the cursor at once."""

BLOCK = _u(256)
"""Numbers of new states that a thread takes at once."""

CURSOR, COUNT = _u(0), _u(8)
"""In ``Known.common``, each on a cache line of its own: the next state to expand, the next number of a new one."""
NEXT, END, OFF, POINTS, FULL = (_u(i) for i in range(5))
"""In ``Mine.counts``: numbers that this thread has for new states; states put off; moves; 1: there was no more room."""


class Known(NamedTuple):
    """What all threads work with. ``table`` by words of two places; the rest as for ``expand``, and only read."""

    states: Halves
    parents: Halves
    table: Words
    common: Words
    rkeys: Own
    rvalues: Halves
    mshared: Halves
    mlocal: Halves
    minfo: Halves
    kinds: Halves
    points_of: Halves
    awake: Halves
    rise: Halves
    alone: Halves
    looks: Halves
    views: Halves
    pkeys: Own
    pvalues: Halves
    options: Own


class Mine(NamedTuple):
    """What one thread has for itself."""

    off: Halves
    row: Halves
    slots: Own
    counts: Own


@inside
def _pair(known: Known, kind: U64, a: U64, b: U64) -> U64:
    """What two numbers come to; PENDING if that is not known."""
    i = slot_of(known.pkeys, kind << _60 | a << _32 | b)
    return PENDING if known.pkeys[i] == _Z else _u(known.pvalues[i])


@inside
def _add(known: Known, mine: Mine, s: U64, width: U64, limit: U64) -> bool:
    """Add the state in ``mine.row``, which ``s`` led to, unless it is there. False if there is no room."""
    states, row, counts = known.states, mine.row, mine.counts
    mask = (_u(len(known.table)) << _1) - _1
    h = hash_of(row, _Z, width)
    tag = (h >> _32) & _LOW & ~mask
    i = h & mask
    n = _Z
    while True:
        word = load_acquire(known.table, i >> _1)
        shift = (i & _1) << _5
        here = (word >> shift) & _LOW
        if here == _Z:
            if n == _Z:  # the first state is never added here
                if counts[NEXT] == counts[END]:
                    begin = fetch_add(known.common, COUNT, BLOCK)
                    if begin + BLOCK > limit:
                        counts[FULL] = _1
                        return False
                    counts[NEXT] = begin
                    counts[END] = begin + BLOCK
                n = counts[NEXT]
                for k in range(width):
                    states[n * width + k] = row[k]
                known.parents[n] = s
            if compare_exchange(known.table, i >> _1, word, word | (tag | (n + _1)) << shift) == word:
                counts[NEXT] = n + _1
                return True
            continue
        if (here ^ tag) & ~mask == _Z:
            at = ((here & mask) - _1) * width
            same = True
            for k in range(width):
                if states[at + k] != row[k]:
                    same = False
                    break
            if same:
                return True
        i = (i + _1) & mask


@inside
def _reach(known: Known, mine: Mine, s: U64, t: U64, wakes: U64, kept: U64, limit: U64) -> bool:
    """As ``expand._reach``; False if the state has to be put off."""
    threads, width, stale, watched = known.options[0], known.options[1], known.options[3], known.options[4]
    row, kinds = mine.row, known.kinds
    base = s * width
    if wakes != _Z:
        left = wakes & _31
        point = wakes >> _5
        for u in range(threads):
            bed = _u(row[_1 + u])
            if left != _Z and kinds[bed] & ASLEEP and _u(known.points_of[bed]) + _1 == point:
                left -= _1
                rises = _u(known.awake[bed])
                if stale != _Z:
                    rises = _pair(known, WAKE, bed, _u(row[_1 + t]))
                if rises == _Z or rises == PENDING:  # noqa: SIM109 - no tuples here
                    return False
                row[_1 + u] = rises
    if stale != _Z and kept == _Z:
        oldest = _Z
        for u in range(threads):
            view = _u(known.views[row[_1 + u]])
            if view != _Z and view != oldest:
                oldest = view if oldest == _Z else _pair(known, OLDEST, oldest, view)
                if oldest == PENDING:
                    return False
        if oldest == _Z:
            oldest = _pair(known, OLDEST, _Z, _u(row[0]))
            if oldest == PENDING:
                return False
        if oldest != _1:
            shared = _pair(known, SHARED, oldest, _u(row[0]))
            if shared == PENDING:
                return False
            for u in range(threads):
                less = _pair(known, FORGET, oldest, _u(row[_1 + u]))
                if less == PENDING:
                    return False
                row[_1 + u] = less
            row[0] = shared
    for u in range(threads):
        kind = _u(kinds[row[_1 + u]])
        if kind & FAILED:
            mine.counts[POINTS] += _1
            return kind & TOLD != _Z
    if watched != _Z:
        changed = row[0] != known.states[base]
        for u in range(threads):
            changed = changed or known.looks[row[_1 + u]] != known.looks[known.states[base + _1 + u]]
        if changed:
            look = _1
            for u in range(threads):
                look = _pair(known, LOOK, look, _u(known.looks[row[_1 + u]]))
                if look == PENDING:
                    return False
            verdict = _pair(known, VERDICT, look, _u(row[0]))
            if verdict == SAID:
                mine.counts[POINTS] += _1
                return True
            if verdict != HOLDS:
                return False
    mine.counts[POINTS] += _1
    return _add(known, mine, s, width, limit)


@inside
def _one(known: Known, mine: Mine, s: U64, limit: U64) -> bool:
    """Expand one state; False if it has to be put off. What it led to before that stays, and is found again."""
    threads, width, buffers = known.options[0], known.options[1], known.options[6]
    states, row, kinds, slots = known.states, mine.row, known.kinds, mine.slots
    base = s * width
    if buffers != _Z:
        for t in range(threads):
            then = _u(known.alone[states[base + _1 + t]])
            if then == _Z or then == PENDING:  # noqa: SIM109 - no tuples here
                return False
            if then != _1:
                for k in range(width):
                    row[k] = states[base + k]
                row[_1 + t] = then
                return _reach(known, mine, s, _u(t), _Z, _1, limit)
    shared = _u(states[base])
    moved = False
    timeouts = False
    for t in range(threads):
        own = _u(states[base + _1 + t])
        slots[t] = _Z
        if kinds[own] & RUNS:
            key = own << _32 | shared
            i = slot_of(known.rkeys, key)
            first = _u(known.rvalues[i])
            if known.rkeys[i] == _Z or first == PENDING:
                return False
            moved = moved or first != _Z
            slots[t] = first
        elif kinds[own] & TIMED:
            timeouts = True
    if not moved and not timeouts:
        return False
    for t in range(threads):
        own = _u(states[base + _1 + t])
        kind = _u(kinds[own])
        m = slots[t]
        rises = _Z
        then = _Z
        if kind & RUNS == _Z and (kind & MAY_RISE or (not moved and kind & TIMED)):
            rises = _1
            then = _u(known.rise[own])
            if then == _Z or then == PENDING:  # noqa: SIM109 - no tuples here
                return False
        while m != _Z or rises != _Z:
            for k in range(width):
                row[k] = states[base + k]
            info = LAST
            if rises == _Z:
                info = _u(known.minfo[m])
                row[0] = known.mshared[m]
                then = _u(known.mlocal[m])
            row[_1 + _u(t)] = then
            if not _reach(known, mine, s, _u(t), info >> _1, rises, limit):
                return False
            if info & LAST:
                break
            m += _1
    return True


@kernel
def expand_known(known: Known, mine: Mine, hi: U64, limit: U64) -> None:
    """Expand states up to number ``hi``, with others, while numbers of new ones are below ``limit``."""
    counts = mine.counts
    while counts[FULL] == _Z:
        lo = fetch_add(known.common, CURSOR, _TAKEN)
        if lo >= hi:
            break
        for s in range(lo, min(lo + _TAKEN, hi)):
            points = counts[POINTS]
            if counts[FULL] != _Z or not _one(known, mine, _u(s), limit):
                counts[POINTS] = points
                mine.off[counts[OFF]] = s
                counts[OFF] += _1


@kernel
def move(states: Halves, parents: Halves, table: Halves, width: U64, old: Own, new: Own) -> None:
    """Give states other numbers, which nobody has."""
    mask = _u(len(table)) - _1
    for j in range(_u(len(old))):
        a, b = old[j], new[j]
        i = hash_of(states, a * width, width) & mask
        while _u(table[i]) & mask != a + _1:
            i = (i + _1) & mask
        for k in range(width):
            states[b * width + k] = states[a * width + k]
        parents[b] = parents[a]
        table[i] = (_u(table[i]) & ~mask) | (b + _1)
