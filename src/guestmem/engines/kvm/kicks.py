"""Kicks and pauses of vCPU threads: ``immediate_exit`` for one on its way in, a signal for one that is inside.

A vCPU clears ``immediate_exit`` before it looks at pauses and requests, and says that it is inside before, too; an
updater asks first and then sets it. So either the vCPU sees what was asked, or its KVM_RUN ends at once.
"""

from __future__ import annotations

from ...atomics import fence, fetch_add, host_store, load_acquire, load_relaxed, store_release, wait_for, wake
from ...compiled import ONE, U64, Own, Words, compiled, const, u64
from ...system import SYS_TGKILL, system_call
from .abi import RUN_IMMEDIATE_EXIT
from .layout import (
    ACKS,
    DONE,
    HOLDING,
    IN_KVM_RUN,
    LOOKS,
    PAUSED,
    PID,
    REQUESTED,
    RUN_PAGE,
    SIGNAL,
    STATE,
    TID,
    VCPU,
    VCPUS,
    WAITING,
)

__all__ = ["acknowledge", "kick_all", "leave", "pause_all", "resume_all", "settle_all"]

_MINUS_ONE = const(0xFFFFFFFFFFFFFFFF)
_EVERYBODY = const(0x7FFFFFFF)
_AGAIN_NS = const(10_000_000)


@compiled
def acknowledge(vm: Words) -> None:
    """From a vCPU that has just changed its STATE or DONE: wake an updater that waits for it."""
    fence()  # pairs with the fence in _wait_for
    if load_relaxed(vm, WAITING) != 0:
        fetch_add(vm, ACKS, ONE)
        wake(vm, ACKS, _EVERYBODY)


@compiled
def leave(vm: Words, vcpu: U64, state: U64) -> None:
    """A vCPU goes outside (or elsewhere); release: what it did in the guest is before."""
    store_release(vm, VCPUS + VCPU * vcpu + STATE, state)
    acknowledge(vm)


@compiled
def _kick(vm: Words, vcpu: U64) -> None:
    base = VCPUS + VCPU * vcpu
    tid = load_acquire(vm, base + TID)
    if tid != 0 and load_acquire(vm, base + STATE) == IN_KVM_RUN:
        host_store(load_relaxed(vm, base + RUN_PAGE), RUN_IMMEDIATE_EXIT)
        system_call(SYS_TGKILL, load_relaxed(vm, PID), tid, load_relaxed(vm, SIGNAL))


@compiled
def _holds_up(vm: Words, vcpu: U64, target: U64, whole: bool) -> bool:
    """Whether the vCPU is inside and has not seen request ``target`` yet; ``whole``: or has an exit to answer."""
    base = VCPUS + VCPU * vcpu
    state = load_acquire(vm, base + STATE)
    if state == HOLDING:
        return whole
    return state == IN_KVM_RUN and load_acquire(vm, base + DONE) < target


@compiled
def _wait_for(vm: Words, vcpus: U64, targets: Own, whole: bool) -> U64:
    """Wait until each vCPU is outside, or has seen request ``targets[k]``; returns how often it slept."""
    slept = u64(0)
    fetch_add(vm, WAITING, ONE)
    fence()
    vcpu = u64(0)
    while vcpu < vcpus:
        looks = u64(0)
        while looks < LOOKS and _holds_up(vm, vcpu, targets[vcpu], whole):
            looks += ONE
        while True:
            acks = load_acquire(vm, ACKS)
            if not _holds_up(vm, vcpu, targets[vcpu], whole):
                break
            slept += ONE
            wait_for(vm, ACKS, acks, _AGAIN_NS)
            if load_acquire(vm, ACKS) == acks:  # cannot happen, but would hang: kick it again
                _kick(vm, vcpu)
        vcpu += ONE
    fetch_add(vm, WAITING, _MINUS_ONE)
    return slept


@compiled(nogil=True)
def kick_all(vm: Words, vcpus: U64, targets: Own) -> U64:
    """Have every vCPU leave the guest once, and wait until it has; returns how often it slept. ``targets``: scratch."""
    vcpu = u64(0)
    while vcpu < vcpus:
        targets[vcpu] = fetch_add(vm, VCPUS + VCPU * vcpu + REQUESTED, ONE) + ONE
        vcpu += ONE
    fence()  # requests are made before states are looked at
    vcpu = u64(0)
    while vcpu < vcpus:
        _kick(vm, vcpu)
        vcpu += ONE
    return _wait_for(vm, vcpus, targets, False)


@compiled(nogil=True)
def settle_all(vm: Words, vcpus: U64, targets: Own) -> U64:
    """In a pause: wait until no vCPU has an exit that is still to be answered; returns how often it slept."""
    vcpu = u64(0)
    while vcpu < vcpus:
        targets[vcpu] = _MINUS_ONE
        vcpu += ONE
    return _wait_for(vm, vcpus, targets, True)


@compiled(nogil=True)
def pause_all(vm: Words, vcpus: U64, targets: Own, whole: bool) -> U64:
    """Put a pause in force (they nest) and wait until every vCPU is outside KVM_RUN; returns how often it slept.

    ``whole``: and until what they had to answer is answered. Not from within an update, whose end answers wait for:
    ``settle_all`` after it.
    """
    fetch_add(vm, PAUSED, ONE)
    fence()
    vcpu = u64(0)
    while vcpu < vcpus:
        targets[vcpu] = _MINUS_ONE  # no request is that far: only outside counts
        _kick(vm, vcpu)
        vcpu += ONE
    return _wait_for(vm, vcpus, targets, whole)


@compiled
def resume_all(vm: Words) -> None:
    """End one pause; the last one wakes the vCPUs."""
    if fetch_add(vm, PAUSED, _MINUS_ONE) == 1:
        wake(vm, PAUSED, _EVERYBODY)
