"""Ranges in flux: frames whose memory is about to change, and whose accesses wait until it has.

The updater writes the ranges, then the word FLUX with their number; a vCPU that finds its frame among them (or, for
ranges that stall writes only, that wants to write) sleeps outside any read-side section until FLUX changes, and
faults again. FLUX also carries the number of the update, so a list that was rewritten while it was read is noticed.
"""

from __future__ import annotations

from ...atomics import load_acquire, load_relaxed, store_release, wake
from ...compiled import U64, Own, Words, compiled, const, u64
from .layout import FLUX, FLUX_RANGE, FLUX_RANGES, STALLS_ALL

__all__ = ["flux_mark", "flux_release", "flux_touches", "in_flux"]

_ONE = const(1)
_COUNT = const(255)
_STEP = const(256)


@compiled
def in_flux(vm: Words, flux: U64, gfn: U64, writes: bool) -> bool:
    """Whether an access to ``gfn`` must wait, by ``flux``, the value of FLUX that the vCPU has just acquired.

    If the list was rewritten meanwhile the answer is yes: FLUX is no longer ``flux``, so the wait ends at once and the
    vCPU looks again.
    """
    count = flux & _COUNT
    where = FLUX_RANGES
    while count != 0:
        # Acquire keeps the look at FLUX below after these loads.
        start = load_acquire(vm, where)
        end = load_acquire(vm, where + _ONE)
        kind = load_acquire(vm, where + u64(2))
        if start <= gfn < end and (writes or kind == STALLS_ALL):
            return True
        where += FLUX_RANGE
        count -= _ONE
    return load_relaxed(vm, FLUX) != flux


@compiled
def flux_mark(vm: Words, ranges: Own, count: U64) -> None:
    """Put ``count`` ranges (3 words each) in flux. Release: a vCPU that acquires FLUX sees them.

    The range words are released as well: a vCPU still reading the list of an earlier update that sees one of them sees
    FLUX changed, too.
    """
    word = u64(0)
    while word < count * FLUX_RANGE:
        store_release(vm, FLUX_RANGES + word, ranges[word])
        word += _ONE
    before = load_relaxed(vm, FLUX)
    store_release(vm, FLUX, (before & ~_COUNT) + _STEP + count)


@compiled
def flux_release(vm: Words) -> None:
    """Nothing is in flux any more; wake who waits. Release: who sees it sees the new set that was published before."""
    before = load_relaxed(vm, FLUX)
    store_release(vm, FLUX, (before & ~_COUNT) + _STEP)
    wake(vm, FLUX, u64(0x7FFFFFFF))


@compiled
def flux_touches(vm: Words, flux: U64, start: U64, end: U64) -> bool:
    """Whether frames ``[start, end)`` overlap a range in flux, of whatever kind, by ``flux`` as in ``in_flux``.

    A large mapping must not: it would map again what has just been zapped next to the frame that faulted.
    """
    count = flux & _COUNT
    where = FLUX_RANGES
    touched = False
    while count != 0 and not touched:
        touched = load_acquire(vm, where) < end and start < load_acquire(vm, where + _ONE)
        where += FLUX_RANGE
        count -= _ONE
    return touched or load_relaxed(vm, FLUX) != flux
