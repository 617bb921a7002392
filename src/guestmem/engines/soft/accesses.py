"""An access of a vCPU: what it touches, what it does there, and what is counted of what it saw.

Writes are locked increments of a counter in the page itself; every value read goes into a checksum.
"""

from __future__ import annotations

from ...atomics import host_fetch_add, host_load, host_store, load_relaxed, store_relaxed
from ...clock import now
from ...compiled import U64, Own, Words, compiled, const, u64, wrapping
from .. import load_words
from . import layout as at
from .words import Sighting
from .xorshift import xorshift

__all__ = [
    "FETCH",
    "READ",
    "SAW_HOLE",
    "SAW_READONLY",
    "WRITE",
    "is_held",
    "kind_of",
    "left_out",
    "meet_hole",
    "next_random",
    "note",
    "perform",
    "perform_marked",
    "pick",
    "seen",
]

READ, WRITE, FETCH = const(0), const(1), const(2)
SAW_HOLE, SAW_READONLY = const(0), const(1)
"""What an access saw, beside a host address."""

_ONE = const(1)
_SHARE = const(0xFFFF)
_NEVER = const(0xFFFFFFFFFFFFFFFF)


@compiled
def next_random(own: Own) -> U64:
    """The vCPU's next random number."""
    return xorshift(own, at.SEED)


@compiled
def pick(own: Own) -> U64:
    """Where in the load's words the next target is; 0 if there is none. Not uniform below 2**-32, which is nothing.

    While it is late, a vCPU is in a short loop: over eight targets, far apart, that its TLB holds.
    """
    random = next_random(own)
    changed = own[at.CHANGED_COUNT]
    others = own[at.OTHERS_COUNT]
    first = own[at.LOAD_BASE] + load_words.LOAD_HEADER
    count = changed
    if changed == 0 or (others != 0 and random & _SHARE >= own[at.CHANGED_SHARE]):
        first += load_words.TARGET * changed
        count = others
    if count == 0:
        return u64(0)
    if own[at.LATE] != 0:
        place = (own[at.LATE] >> 32) + (random >> 61) * (_ONE + (count >> 3))
        return first + load_words.TARGET * (place % count)
    if own[at.PATTERN] == load_words.SEQUENTIAL:
        own[at.POSITION] += _ONE
        return first + load_words.TARGET * (own[at.POSITION] % count)
    chosen = ((random >> 32) * count) >> 32
    if own[at.PATTERN] == load_words.HOT and random & u64(0xF0000) != 0:  # 15 of 16 go to a tenth of the targets
        chosen = chosen // u64(10)
    return first + load_words.TARGET * chosen


@compiled
def kind_of(own: Own, random: U64) -> U64:
    """Whether an access reads, writes or fetches."""
    if random & _SHARE < own[at.WRITE_SHARE]:
        return WRITE
    if (random >> 16) & _SHARE < own[at.FETCH_SHARE]:
        return FETCH
    return READ


@compiled
def seen(host: U64, kind: U64, readonly: bool) -> U64:
    """What an access would see of memory at ``host``, 0 for none: that address, ``SAW_HOLE`` or ``SAW_READONLY``."""
    return SAW_READONLY if kind == WRITE and host != 0 and readonly else host


@compiled
def left_out(own: Own, random: U64, old: U64) -> bool:
    """Whether an access that would leave the guest even without an update is not made: most of them, all while late.

    After an exit a vCPU looks for requests, so one that exits all the time is never late for an update.
    """
    return old <= SAW_READONLY and (own[at.LATE] != 0 or random >> 62 != 0)


@compiled
def perform(own: Own, host: U64, kind: U64) -> None:
    """The access itself: 8 bytes of host memory."""
    if kind == WRITE:
        host_fetch_add(host, _ONE)
        own[at.WRITES] += _ONE
        return
    own[at.CHECKSUM] = wrapping((own[at.CHECKSUM] << 1) ^ (own[at.CHECKSUM] >> 63) ^ host_load(host))
    if kind == FETCH:
        own[at.FETCHES] += _ONE
    else:
        own[at.READS] += _ONE


@compiled
def perform_marked(own: Own, host: U64, kind: U64, private: bool, value: U64) -> None:
    """The access, where a private write leaves SECRET set and every other one leaves it clear."""
    if kind == WRITE:
        value = value >> 1
        if private:
            value |= load_words.SECRET
        host_store(host, value)
        own[at.WRITES] += _ONE
        return
    if host_load(host) & load_words.SECRET != 0 and not private:
        own[at.SAW_PRIVATE] += _ONE
    own[at.READS] += _ONE


@compiled
def meet_hole(vm: Words, own: Own, kind: U64, must: bool, behind: U64) -> U64:
    """What a guest sees where there is no slot: MMIO, or for a fetch the end (KVM_EXIT_INTERNAL_ERROR).

    Returns the host memory that it saw all the same, else ``SAW_HOLE``.

    With ``ANSWERS``, the VMM answers data accesses from ``behind``, the memory of its own, old view. A locked
    instruction then becomes a read exit and a write exit: no longer one operation.
    """
    if not must:
        counter = at.MMIO_READS + kind
        own[counter] += _ONE
    elif kind == FETCH:
        own[at.KILLED_FETCHES] += _ONE
    elif behind != 0 and load_relaxed(vm, at.ANSWERS) != 0:
        value = host_load(behind)
        if kind == WRITE:
            host_store(behind, wrapping(value + _ONE))
        else:
            own[at.CHECKSUM] = wrapping((own[at.CHECKSUM] << 1) ^ (own[at.CHECKSUM] >> 63) ^ value)
        own[at.ANSWERED_READS + kind] += _ONE
        return behind
    else:
        own[at.HOLES_READ + kind] += _ONE
    return SAW_HOLE


@compiled
def is_held(vm: Words, kind: U64) -> bool:
    """Whether an exit of this kind that falls into an update waits for its end."""
    return kind == FETCH or load_relaxed(vm, at.FETCHES_ONLY) == 0


@compiled
def note(vm: Words, own: Own, vcpu: U64, gpa: U64, flags: U64, sighting: Sighting) -> None:
    """Count what an access of ``gpa`` in or across a window saw, and whether it saw old or new."""
    old, new, saw, begun, window, start = sighting
    phase = wrapping(begun - own[at.WINDOW_LOADED])
    ended = wrapping(window - own[at.WINDOW_LOADED])
    must = flags & load_words.MUST != 0
    if saw != old and saw != new and (saw != SAW_HOLE or not must):
        if saw == SAW_READONLY:
            own[at.REFUSED_WRITES] += _ONE
        else:
            own[at.STRANGE] += _ONE
    if must and (phase == 1 or ended != phase):
        own[at.INSIDE] += _ONE
        if flags & load_words.CHANGED != 0:
            own[at.INSIDE_CHANGED] += _ONE
    if old == new or (saw != old and saw != new):
        return
    report = at.VCPUS + at.VCPU * vcpu + at.REPORT + load_words.REPORT_WORDS * (own[at.LOADED] & _ONE)
    if saw == old:
        if phase == 2:
            own[at.STALE] += _ONE
        elif phase == 1:
            own[at.SAW_OLD] += _ONE
            store_relaxed(vm, report + load_words.LAST_OLD, start)
            store_relaxed(vm, report + load_words.LAST_OLD_GPA, gpa)
    elif phase < 2 and ended != 0:
        own[at.SAW_NEW] += _ONE
        if load_relaxed(vm, report + load_words.FIRST_NEW) == _NEVER:
            store_relaxed(vm, report + load_words.FIRST_NEW, now())
            store_relaxed(vm, report + load_words.FIRST_NEW_GPA, gpa)
