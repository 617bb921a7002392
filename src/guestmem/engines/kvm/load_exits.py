"""Exits of the load guest: what its access met, written where the guest counts it, and a new start after its death.

The guest may run wild before it dies, so nothing that it can write is followed as a pointer: see ``find_target``.
"""

from __future__ import annotations

from ...atomics import host_load, host_store, load_relaxed
from ...compiled import ONE, U64, Own, Words, compiled, const, u64, wrapping
from ...system import SYS_IOCTL, failed, host_store8, system_call
from ..load_words import (
    DEVICE_TAG,
    LOAD_HEADER,
    MUST,
    NEW_READONLY,
    OLD_READONLY,
    TAG_BYTE,
    TARGET,
    TARGET_FLAGS,
    TARGET_GPA,
    TARGET_NEW,
    TARGET_OLD,
)
from . import layout as at
from .abi import RUN_DATA, RUN_LENGTH, RUN_PHYS_ADDR
from .answers import MMIO, NEXT_FRAGMENT, complete
from .fragments import answer_fragment
from .load_layout import (
    ANSWERED,
    BLOCK_KIND,
    BLOCK_OUTCOME,
    BLOCK_TARGET,
    DEVICE,
    HOLE,
    LANDED,
    LOAD_BYTES,
    LOADS,
    READONLY_WRITE,
)
from .x86 import X86Ioctl

__all__ = ["count_kill", "count_mmio", "find_target"]

_BYTE = const(0xFF)
_SIZE = const(0xFFFFFFFF)
_WORD = const(8)
_SET_SREGS, _SET_REGS = const(int(X86Ioctl.SET_SREGS)), const(int(X86Ioctl.SET_REGS))
_SET_EVENTS = const(int(X86Ioctl.SET_VCPU_EVENTS))
_SHUTDOWN, _INTERNAL_ERROR = const(8), const(17)
_WRITE = const(1)
_RET_PLACE, _RET = const(7), const(0xC3)
_TAG_SHIFT = const(8 * int(TAG_BYTE))
_FROM_DEVICE = const((0xC3 << 56) | (int(DEVICE_TAG) << 8 * int(TAG_BYTE)))


@compiled
def find_target(own: Own) -> U64:
    """Host address of the target that the guest says it is at; 0 if that is none of the load in force.

    The word is the guest's to write, and a guest that has run wild may have written anything.
    """
    base = own[at.GUEST_HOST]
    offset = wrapping(host_load(own[at.GUEST] + BLOCK_TARGET) - own[at.GUEST_GPA])
    if offset < LOADS or offset >= LOADS + LOAD_BYTES + LOAD_BYTES:
        return u64(0)
    load = base + LOADS
    if offset >= LOADS + LOAD_BYTES:
        load += LOAD_BYTES
    first = load + LOAD_HEADER * _WORD
    place = base + offset
    if place < first or wrapping(place - first) % (TARGET * _WORD) != 0:
        return u64(0)
    if wrapping(place - first) // (TARGET * _WORD) >= host_load(load) + host_load(load + _WORD):
        return u64(0)
    return place


@compiled
def _from_device(run: U64) -> bool:
    """Whether what is written was computed from what a device answered: then the whole access met no memory."""
    return (host_load(run + RUN_DATA) >> _TAG_SHIFT) & _BYTE == DEVICE_TAG


@compiled
def count_mmio(vm: Words, own: Own) -> U64:
    """An access that no slot served: say what it met, and answer it (zero, unless HOLES says from what is behind)."""
    run = own[at.RUN]
    block = own[at.GUEST]
    gpa = host_load(run + RUN_PHYS_ADDR)
    what = host_load(run + RUN_LENGTH)
    writes = (what >> 32) & _BYTE != 0
    target = find_target(own)
    if target == 0:
        return count_kill(own, MMIO)
    place = wrapping(gpa - host_load(target + TARGET_GPA * _WORD))
    if place >= _WORD:  # not the 8 bytes that the guest says it is at: it runs wild
        return count_kill(own, MMIO)
    flags = host_load(target + TARGET_FLAGS * _WORD)
    old = host_load(target + TARGET_OLD * _WORD)
    outcome = DEVICE
    if writes and flags & (OLD_READONLY | NEW_READONLY) != 0 and not _from_device(run):
        outcome = READONLY_WRITE
    elif flags & MUST != 0:
        outcome = HOLE
        if load_relaxed(vm, at.HOLES) == at.ANSWER and old != 0:
            outcome = ANSWERED
    if not writes and host_load(block + BLOCK_KIND) == _WRITE:
        outcome += LANDED  # unless a write exit follows
    host_store(block + BLOCK_OUTCOME, outcome)
    if outcome == ANSWERED or outcome == ANSWERED + LANDED:
        answer_fragment(run, old + place, what & _SIZE, writes)
    elif not writes:
        # Nothing was counted, but what is computed from it and lands in memory is still code that returns (else the
        # guest would run wild there, and its own writes would spoil what is counted), and tells by its tag what it is.
        host_store(run + RUN_DATA, _FROM_DEVICE >> (place << u64(3)))
    return at.GO_ON


@compiled
def count_kill(own: Own, reason: U64) -> U64:
    """The guest is dead, or runs wild: count it, and start it again. What it has counted is in memory and stays."""
    target = find_target(own)
    if target == 0:
        own[at.STRANGE] += ONE
        if host_load(own[at.GUEST] + BLOCK_TARGET) == 0:  # it has not begun: starting again would lead here again
            return at.EXIT
        return start_again(own, target)
    if reason != _SHUTDOWN and reason != _INTERNAL_ERROR:
        own[at.STRANGE] += ONE
    elif host_load(target + TARGET_FLAGS * _WORD) & MUST != 0:
        own[at.KILLED_FETCHES] += ONE
    else:
        own[at.INTERNAL_ERRORS] += ONE
    if reason == _SHUTDOWN:
        own[at.SHUTDOWNS] += ONE
    return start_again(own, target)


@compiled
def start_again(own: Own, target: U64) -> U64:
    """Put the guest back to its start: after what it has begun, which KVM would carry out on the new registers.

    ``target``: where it was, 0 if that is not known. It may have died because what it runs was overwritten, by a write
    computed from a hole: that is put back, too.
    """
    fragments = u64(0)
    while complete(own) == NEXT_FRAGMENT and fragments < _WORD:
        fragments += ONE
    own[at.DEVICE] = u64(0)
    host_store(own[at.RUN], u64(0))
    if target != 0:
        old = host_load(target + TARGET_OLD * _WORD)
        new = host_load(target + TARGET_NEW * _WORD)
        if old != 0:
            host_store8(old + _RET_PLACE, _RET)
        if new != 0:
            host_store8(new + _RET_PLACE, _RET)
    error = failed(system_call(SYS_IOCTL, own[at.FD], _SET_SREGS, own[at.RESET_SREGS]))
    error |= failed(system_call(SYS_IOCTL, own[at.FD], _SET_REGS, own[at.RESET_REGS]))
    error |= failed(system_call(SYS_IOCTL, own[at.FD], _SET_EVENTS, own[at.RESET_EVENTS]))
    if error != 0:
        own[at.ERRNO] = error
        return at.FAILED
    return at.GO_ON
