"""The inner loop of the search over states, compiled: every component of a state is a number, every move a row.

A state is a row of 32-bit numbers: what is shared (``rows.Rows.shared``), then of each thread what is its own
(``rows.Rows.local``), and with a bound on preemptions who ran last and how many there were. What a thread does to a
shared part is looked up in a hash table; a row that is missing is made (``unfold.py``). Where Python must be asked for
something, the state is put off; it is asked in batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..compiled import U64, Own
from .asking import (
    ALL,
    ALONE,
    ASKED,
    ASLEEP,
    CHANGED,
    ENDED,
    FAILED,
    FORGET,
    FOUND,
    HOLDS,
    LAST,
    LOOK,
    MAY_RISE,
    MEMORIES,
    MOVES,
    OFF,
    OLDEST,
    PAIRS,
    PENDING,
    POINTS,
    RISE,
    ROWS,
    RUNS,
    SAID,
    SHARED,
    STATES,
    STOP,
    TIMED,
    TOLD,
    VERDICT,
    WAKE,
    ask,
    pair,
)
from .hashed import add_hash
from .packed import add_state, find_state, inside, kernel, slot_of
from .unfold import Unfolded, unfold

if TYPE_CHECKING:
    Halves = Any
    """Numbers of 32 bits in an array."""
    _u = int
else:
    from numpy import uint64 as _u

__all__ = ["expand"]

_Z = _u(0)
_1 = _u(1)
_2 = _u(2)
_8 = _u(8)
_31 = _u(31)
_32 = _u(32)
_60 = _u(60)
_TEN = _u(10)
_17 = _u(17)
_20 = _u(20)
_SIX = _u(6)
_SEVEN = _u(7)


@inside
def _reach(
    states: Halves,
    parents: Halves,
    table: Halves,
    kinds: Halves,
    points_of: Halves,
    awake: Halves,
    looks: Halves,
    views: Halves,
    pkeys: Own,
    pvalues: Halves,
    asked: Own,
    found: Halves,
    row: Halves,
    can_end: Halves,
    counts: Own,
    options: Own,
    s: U64,
    t: U64,
    wakes: U64,
    kept: U64,
) -> bool:
    """A state that a move led to (in ``row``): wake, forget, judge, add. False if Python was asked.

    ``kept``: 1 if what memory forgets is not to be looked at.
    """
    threads, width, bounded, stale, watched = options[0], options[1], options[2], options[3], options[4]
    sweeps = options[8]
    base = s * width
    if wakes != _Z:
        left = wakes & _31
        point = wakes >> _u(5)
        for u in range(threads):
            bed = _u(row[_1 + u])
            if left != _Z and kinds[bed] & ASLEEP and _u(points_of[bed]) + _1 == point:
                left -= _1
                if stale != _Z:
                    rises = pair(pkeys, pvalues, asked, counts, WAKE, bed, _u(row[_1 + t]))
                else:
                    rises = _u(awake[bed])
                    if rises == _Z:
                        awake[bed] = PENDING
                        ask(asked, counts, WAKE, bed, _Z, _Z)
                        rises = PENDING
                if rises == PENDING:
                    return False
                row[_1 + u] = rises
    if stale != _Z and kept == _Z:
        oldest = _Z
        for u in range(threads):
            view = _u(views[row[_1 + u]])
            if view != _Z and view != oldest:
                oldest = view if oldest == _Z else pair(pkeys, pvalues, asked, counts, OLDEST, oldest, view)
                if oldest == PENDING:
                    return False
        if oldest == _Z:
            oldest = pair(pkeys, pvalues, asked, counts, OLDEST, _Z, _u(row[0]))
            if oldest == PENDING:
                return False
        if oldest != _1:  # the first view: nothing to forget
            whole = True
            shared = pair(pkeys, pvalues, asked, counts, SHARED, oldest, _u(row[0]))
            whole = shared != PENDING
            for u in range(threads):
                less = pair(pkeys, pvalues, asked, counts, FORGET, oldest, _u(row[_1 + u]))
                whole = whole and less != PENDING
                row[_1 + u] = less
            if not whole:
                return False
            row[0] = shared
    bad = _Z
    for u in range(threads):
        if bad == _Z and kinds[row[_1 + u]] & FAILED:
            bad = _u(row[_1 + u])
    tell = False
    if bad != _Z and sweeps != _Z:
        can_end[s] = _1
        return True
    if bad != _Z:
        tell = kinds[bad] & TOLD == _Z
        kinds[bad] |= TOLD
        counts[POINTS] += _1
        if not tell:
            return True
    elif watched != _Z:
        changed = row[0] != states[base]
        for u in range(threads):
            changed = changed or looks[row[_1 + u]] != looks[states[base + _1 + u]]
        if changed:
            look = _1
            for u in range(threads):
                look = pair(pkeys, pvalues, asked, counts, LOOK, look, _u(looks[row[_1 + u]]))
                if look == PENDING:
                    return False
            verdict = pair(pkeys, pvalues, asked, counts, VERDICT, look, _u(row[0]))
            if verdict == PENDING:
                return False
            if verdict != HOLDS and sweeps != _Z:
                can_end[s] = _1
                return True
            if verdict != HOLDS:
                counts[POINTS] += _1
                if verdict == SAID:
                    return True
                pvalues[slot_of(pkeys, VERDICT << _60 | look << _32 | _u(row[0]))] = SAID
                tell = True
    if tell:
        at = counts[FOUND] * (width + _1)
        found[at] = s
        for k in range(width):
            found[at + _1 + k] = row[k]
        counts[FOUND] += _1
        return True
    if sweeps != _Z:
        if can_end[find_state(states, table, row, width, bounded)] != _Z:
            can_end[s] = _1
        return True
    if bad == _Z:
        counts[POINTS] += _1
    if options[10] != _Z:
        add_hash(states, table, row, width, options[10], counts)
    else:
        counts[STATES] = add_state(states, parents, table, row, width, s, bounded, counts[STATES])
    return True


@kernel
def expand(
    states: Halves,
    parents: Halves,
    table: Halves,
    work: Halves,
    rkeys: Own,
    rvalues: Halves,
    mshared: Halves,
    mlocal: Halves,
    minfo: Halves,
    kinds: Halves,
    points_of: Halves,
    awake: Halves,
    rise: Halves,
    alone: Halves,
    looks: Halves,
    views: Halves,
    pkeys: Own,
    pvalues: Halves,
    asked: Own,
    again: Halves,
    found: Halves,
    ended: Halves,
    row: Halves,
    can_end: Halves,
    slots: Own,
    counts: Own,
    options: Own,
    un: Unfolded,
    lo: U64,
    hi: U64,
) -> None:
    """Expand states number ``lo`` to ``hi``, or of ``work`` if that is not empty; until done or out of room.

    ``options``: threads, width of a state, 1 if bounded, 1 if stale, 1 if watched, the bound, 1 if buffers, how many
    states one may lead to, and 1 to sweep: once all states are known, find out (in ``can_end``) from which an end, or
    something that is wrong, can be reached; last states first. Then how many values a memory has, 0 if stale; and
    if a table of hashes stands for states, the bits of one that are compared.
    """
    threads, width, bounded, bound, buffers = options[0], options[1], options[2], options[5], options[6]
    from_work = len(work) > 0
    index = lo
    most = options[7]
    sweeps = options[8]
    stale, size, hashes = options[3], options[9], options[10]
    while index < hi:
        s = _u(work[index]) if from_work else index
        if sweeps != _Z:
            s = hi - _1 - (index - lo)
            if can_end[s] != _Z:
                index += _1
                continue
        n = counts[STATES]
        if (
            (n + most) * width > _u(len(states))
            or (hashes == _Z and (n + most) * _TEN > _u(len(table)) * _SEVEN)
            or (hashes != _Z and (counts[ALL] + most) * _20 > _u(len(table)) * _17)
            or (counts[ASKED] + most * _8) * _2 > _u(len(asked))
            or counts[OFF] + _1 >= _u(len(again))
            or (counts[FOUND] + most) * (width + _1) > _u(len(found))
            or counts[ENDED] + _1 >= _u(len(ended))
            or (counts[ROWS] + threads) * _TEN > _u(len(rkeys)) * _SIX
            or (counts[PAIRS] + most * _8) * _TEN > _u(len(pkeys)) * _SIX
            or counts[MOVES] + most > _u(len(mshared))
            or (counts[MEMORIES] + most) * size > _u(len(un.memories))
            or (counts[MEMORIES] + most) * _TEN > _u(len(un.places)) * _SEVEN
        ):
            break
        index += _1
        base = s * width
        shared = _u(states[base])
        points = counts[POINTS]
        whole = True
        only = threads
        if buffers != _Z and bounded == _Z:
            for t in range(threads):
                own = states[base + _1 + t]
                then = _u(alone[own])
                if then == _Z:
                    alone[own] = PENDING
                    ask(asked, counts, ALONE, _u(own), _Z, _Z)
                if then == _Z or then == PENDING:  # noqa: SIM109 - no tuples here
                    whole = False
                    break
                if then != _1:
                    only = _u(t)
                    break
        if whole and only < threads:
            for k in range(width):
                row[k] = states[base + k]
            row[_1 + only] = alone[row[_1 + only]]
            whole = _reach(
                states, parents, table, kinds, points_of, awake, looks, views, pkeys, pvalues, asked, found,
                row, can_end, counts, options, s, only, _Z, _1,
            )  # fmt: skip
        elif whole:
            moved = False
            last = _Z
            used = _Z
            can_go_on = False
            if bounded != _Z:
                last = _u(states[base + width - _2])
                used = _u(states[base + width - _1])
            for t in range(threads):
                own = _u(states[base + _1 + t])
                slots[t] = _Z
                if kinds[own] & RUNS:
                    key = own << _32 | shared
                    i = slot_of(rkeys, key)
                    first = _u(rvalues[i])
                    if rkeys[i] == _Z:
                        first = PENDING
                        if stale == _Z:
                            first = unfold(un, mshared, mlocal, minfo, pkeys, pvalues, asked, counts, own, shared, size)
                        else:
                            ask(asked, counts, _Z, own, shared, i)
                        if first != PENDING or stale != _Z:
                            rkeys[i] = key
                            rvalues[i] = first
                            counts[ROWS] += _1
                    if first == PENDING:
                        whole = False
                    elif first != _Z:
                        moved = True
                        can_go_on = can_go_on or _u(t) + _1 == last
                    slots[t] = first
            timeouts = False
            if whole and not moved:
                for t in range(threads):
                    kind = _u(kinds[states[base + _1 + t]])
                    if kind & TIMED:
                        timeouts = True
                        can_go_on = can_go_on or _u(t) + _1 == last
            for t in range(threads):
                own = _u(states[base + _1 + t])
                kind = _u(kinds[own])
                cost = used
                if can_go_on and _u(t) + _1 != last:
                    cost += _1
                if not whole or (bounded != _Z and cost > bound) or (sweeps != _Z and can_end[s] != _Z):
                    continue
                m = slots[t]
                rises = _Z
                then = _Z
                if kind & RUNS == _Z and (kind & MAY_RISE or (timeouts and kind & TIMED)):
                    rises = _1
                    then = _u(rise[own])
                    if then == _Z:
                        rise[own] = PENDING
                        ask(asked, counts, RISE, own, _Z, _Z)
                    if then == _Z or then == PENDING:  # noqa: SIM109 - no tuples here
                        whole = False
                        continue
                while m != _Z or rises != _Z:  # each of its moves; a sleeper that rises has one
                    for k in range(width):
                        row[k] = states[base + k]
                    info = LAST
                    if rises == _Z:
                        info = _u(minfo[m])
                        row[0] = mshared[m]
                        then = _u(mlocal[m])
                    row[_1 + _u(t)] = then
                    if bounded != _Z:
                        row[width - _2] = _u(t) + _1
                        row[width - _1] = cost
                    reached = _reach(
                        states, parents, table, kinds, points_of, awake, looks, views, pkeys, pvalues,
                        asked, found, row, can_end, counts, options, s, _u(t), info >> _1, rises,
                    )  # fmt: skip
                    whole = reached and whole
                    if info & LAST or (sweeps != _Z and can_end[s] != _Z):
                        break
                    m += _1
            if sweeps != _Z and not moved and not timeouts:
                can_end[s] = _1
            elif whole and not moved and not timeouts:
                ended[counts[ENDED]] = s
                counts[ENDED] += _1
        if sweeps != _Z and can_end[s] != _Z:
            counts[CHANGED] += _1
            up = _u(parents[s])
            while can_end[up] == _Z:  # what led to it can come to the same end
                can_end[up] = _1
                up = _u(parents[up])
        if not whole:
            again[counts[OFF]] = s
            counts[OFF] += _1
            counts[POINTS] = points
    counts[STOP] = index
