"""Invalidations: logged for all vCPUs, and completed when none in the guest can use what they cover.

An invalidator changes the descriptor, logs what TLBs must forget, and waits until every vCPU in the guest has applied
the log so far. One outside applies it, or forgets everything, when it enters. The store of a record and the look at
IN_GUEST here, the store of IN_GUEST and the look at the log there: both have a full fence between, so one of them sees
the other. Idea: TLBI and DSB, Arm; ``kvm_flush_remote_tlbs()`` and ``vcpu->mode``, Linux ``virt/kvm/kvm_main.c``.

Two records make an invalidation by address: the stage-2 entries, then all combined ones, in this order, or a vCPU could
fill a combined entry again from the stage-2 one that is about to go. Hardware needs a barrier between the two; here a
vCPU applies its log in order.
"""

from __future__ import annotations

from ..atomics import (
    compare_exchange,
    exchange,
    fence,
    fetch_add,
    load_acquire,
    load_relaxed,
    store_relaxed,
    store_release,
    wait,
    wake,
)
from ..compiled import ONE, TWO, U64, Words, compiled, const, u64
from ..patience import LOOKS
from .layout import TLB_BASE, TLB_RING, VCPUS
from .tlb_layout import (
    ACKS,
    APPLIED,
    COMBINED,
    COMPLETIONS,
    EVERYTHING,
    IN_GUEST,
    LINE,
    LINES,
    LOCAL_IPA,
    LOCAL_LEVEL,
    LOCALS,
    LOG_LOCK,
    RECORD,
    RECORD_DONE,
    RECORD_END,
    RECORD_START,
    SEQUENCE,
    SLEPT,
    WAITING,
)

__all__ = ["acknowledge", "forget_mine", "log_invalidation", "record_at", "wait_for_vcpus"]

_THREE = const(3)
_MINUS_ONE = const(0xFFFFFFFFFFFFFFFF)
_EVERYBODY = const(0x7FFFFFFF)


@compiled(inline=True)
def record_at(mmu: Words, hub: U64, number: U64) -> U64:
    """Word of log record ``number``, as long as it is one of the last."""
    place = number & (load_relaxed(mmu, TLB_RING) - ONE)
    return hub + LINES + LINE * load_relaxed(mmu, VCPUS) + RECORD * place


@compiled
def _log(mmu: Words, hub: U64, what: U64, start: U64, end: U64) -> None:
    """Write one record, under the log's lock.

    All is released: a vCPU that still reads the record which was there before, and sees a word of this one, also sees
    SEQUENCE so far on that the old record no longer counts.
    """
    number = load_relaxed(mmu, hub + SEQUENCE)
    record = record_at(mmu, hub, number)
    store_release(mmu, record, what)
    store_release(mmu, record + RECORD_START, start)
    store_release(mmu, record + RECORD_END, end)
    store_release(mmu, hub + SEQUENCE, number + ONE)


@compiled
def log_invalidation(mmu: Words, hub: U64, what: U64, start: U64, end: U64) -> U64:
    """Log an invalidation; returns the number of records then, for ``wait_for_vcpus``. The descriptor is changed."""
    lock = hub + LOG_LOCK
    if compare_exchange(mmu, lock, u64(0), ONE) != 0:
        while exchange(mmu, lock, TWO) != 0:
            wait(mmu, lock, TWO)
    _log(mmu, hub, what, start, end)
    if what != EVERYTHING:
        _log(mmu, hub, COMBINED, start, end)
    last = load_relaxed(mmu, hub + SEQUENCE)
    if exchange(mmu, lock, u64(0)) == 2:
        wake(mmu, lock, ONE)
    return last


@compiled
def wait_for_vcpus(mmu: Words, hub: U64, last: U64, count: U64) -> None:
    """Wait until no vCPU is in the guest that has not applied all records below ``last``; then ``count`` are complete.

    The caller is not in the guest itself. O(walkers).
    """
    fence()  # records are logged before we look who is in the guest
    waiting = False
    looks = u64(0)
    walkers = load_relaxed(mmu, VCPUS)
    walker = u64(0)
    while walker < walkers:
        line = hub + LINES + LINE * walker
        # Acquire, both: what the vCPU did through its old entries is before what the caller does next.
        while load_acquire(mmu, line + IN_GUEST) != 0 and load_acquire(mmu, line + APPLIED) < last:
            if not waiting:
                looks += ONE
                if looks < LOOKS:
                    continue
                fetch_add(mmu, hub + WAITING, ONE)
                fence()  # we count as waiting before we look again
                waiting = True
                continue
            acks = load_acquire(mmu, hub + ACKS)
            if load_acquire(mmu, line + IN_GUEST) != 0 and load_acquire(mmu, line + APPLIED) < last:
                fetch_add(mmu, hub + SLEPT, ONE)
                wait(mmu, hub + ACKS, acks)
        walker += ONE
    if waiting:
        fetch_add(mmu, hub + WAITING, _MINUS_ONE)
    fetch_add(mmu, hub + COMPLETIONS, ONE)
    number = last - count
    while number < last:
        if load_relaxed(mmu, hub + SEQUENCE) - number < load_relaxed(mmu, TLB_RING):
            store_release(mmu, record_at(mmu, hub, number) + RECORD_DONE, number + ONE)
        number += ONE


@compiled
def acknowledge(mmu: Words, hub: U64) -> None:
    """From a vCPU that has just stored IN_GUEST or APPLIED: wake who waits. The fence pairs with ``wait_for_vcpus``."""
    fence()
    if load_relaxed(mmu, hub + WAITING) != 0:
        fetch_add(mmu, hub + ACKS, ONE)
        wake(mmu, hub + ACKS, _EVERYBODY)


@compiled
def forget_mine(mmu: Words, walker: U64, ipa: U64, level: U64) -> None:
    """Have the calling vCPU, which is outside, forget the leaf for ``ipa`` before it uses its TLB again (TLBI, nsh)."""
    hub = load_relaxed(mmu, TLB_BASE)
    if hub == 0:
        return
    line = hub + LINES + LINE * walker
    store_relaxed(mmu, line + LOCAL_IPA, ipa)
    store_relaxed(mmu, line + LOCAL_LEVEL, level)
    store_relaxed(mmu, line + LOCALS, load_relaxed(mmu, line + LOCALS) + ONE)
