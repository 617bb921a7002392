"""What a vCPU of the software engine does beside its accesses: requests, pauses, core tokens, waits.

A vCPU is a loop that touches memory and counts what it saw, compiled, without the GIL (``stage2_vcpu``). Whatever it
found while it handled a fault is used only after a look for requests, as a real vCPU enters the guest only after one
(``vcpu_enter_guest()``, Linux 6.18, ``arch/x86/kvm/x86.c``). While in the guest it looks for requests every ``POLL``
accesses: an interrupt, too, takes about a microsecond to arrive.
"""

from __future__ import annotations

from ...atomics import fence, load_acquire, load_relaxed, store_relaxed, store_release, wait, wait_for
from ...clock import now
from ...compiled import INTERPRETED, U64, Own, Words, compiled, const, u64
from ...rcu.srcu import srcu_enter, srcu_exit
from .. import load_words
from . import layout as at
from .accesses import next_random
from .cores import cores_wanted, give_core, take_core
from .requests import acknowledge, leave_guest
from .stalls import record_stall

__all__ = [
    "end_slice",
    "enter_guest",
    "leave_core",
    "look",
    "next_look",
    "wait_out_flux",
    "wait_out_invalid",
    "wait_out_update",
]

POLL = const(128)
"""Accesses between two looks for requests: some 2 µs, as long as an interrupt takes to arrive."""
LATE_POLL, LATE_ONCE_IN = const(256 if INTERPRETED else 16384), const(1023)
"""One look in 1024 comes only after so many: interrupts off, or a virtual CPU that its own host preempted.

Some 200 µs: longer than it takes to wake a vCPU that waits for an update. Else the others would never see new memory
while this one still uses its old translations.
"""

_ONE = const(1)
_NEVER = const(0xFFFFFFFFFFFFFFFF)
_RETRY_NS = const(1_000_000)

# What a fault came to.
FILLED, HOLE, READONLY, INVALID, IN_FLUX = const(0), const(1), const(2), const(3), const(4)
IN_FILE = const(5)  # the slot has a guest_memfd


@compiled
def take_load(vm: Words, load: Words, own: Own, vcpu: U64, epoch: U64) -> None:
    """Start to work on another load; the report of the last one is complete from here on."""
    half = epoch & _ONE
    base = half * own[at.LOAD_HALF]
    own[at.AS_ID] = load_relaxed(load, base + load_words.LOAD_AS_ID)
    own[at.LOADED] = epoch
    own[at.LOAD_BASE] = base
    own[at.CHANGED_COUNT] = load_relaxed(load, base + load_words.LOAD_CHANGED)
    own[at.OTHERS_COUNT] = load_relaxed(load, base + load_words.LOAD_OTHERS)
    own[at.WINDOW_LOADED] = load_relaxed(load, base + load_words.LOAD_WINDOW)
    report = at.VCPUS + at.VCPU * vcpu + at.REPORT + load_words.REPORT_WORDS * half
    store_relaxed(vm, report + load_words.LAST_OLD, u64(0))
    store_relaxed(vm, report + load_words.FIRST_NEW, _NEVER)
    store_release(vm, report, epoch)


@compiled
def service(vm: Words, load: Words, own: Own, vcpu: U64) -> None:
    """Carry out what was asked for and say so.

    REQUESTED is acquired first: what its requesters asked for before (LOAD) is then seen. DONE is released last: what
    was asked for is done before the requester sees it acknowledged.
    """
    base = at.VCPUS + at.VCPU * vcpu
    requested = load_acquire(vm, base + at.REQUESTED)
    epoch = load_acquire(vm, at.LOAD)
    if epoch != own[at.LOADED]:
        take_load(vm, load, own, vcpu, epoch)
    if requested != own[at.ACKED]:
        own[at.ACKED] = requested
        own[at.REQUESTS] += _ONE
        store_release(vm, base + at.DONE, requested)
        acknowledge(vm)


@compiled
def enter_guest(vm: Words, load: Words, own: Own, vcpu: U64) -> bool:
    """Wait for the end of pauses and for a core, carry out requests, enter the guest; False if the VM stops."""
    base = at.VCPUS + at.VCPU * vcpu
    while True:
        paused = load_acquire(vm, at.PAUSED)
        while paused != 0 and load_relaxed(vm, at.STOP) == 0:
            if own[at.STALL_BEGUN] == 0:
                own[at.STALL_BEGUN] = now()
                own[at.PAUSES] += _ONE
            wait(vm, at.PAUSED, paused)
            paused = load_acquire(vm, at.PAUSED)
        take_core(vm)
        store_release(vm, base + at.MODE, at.IN_GUEST)
        fence()  # in the guest before we look for requests and pauses: see requests.py
        if load_relaxed(vm, at.STOP) != 0:
            leave_guest(vm, vcpu, at.OUTSIDE)
            give_core(vm)
            own[at.STALL_BEGUN] = u64(0)  # a wait that a stop cut short is none
            return False
        if load_acquire(vm, at.PAUSED) == 0:
            service(vm, load, own, vcpu)
            if own[at.STALL_BEGUN] != 0:
                record_stall(own, now() - own[at.STALL_BEGUN])
                own[at.STALL_BEGUN] = u64(0)
            return True
        leave_guest(vm, vcpu, at.OUTSIDE)
        give_core(vm)


@compiled
def leave_core(vm: Words, own: Own, vcpu: U64, stalls: bool) -> None:
    """Go outside and let another vCPU have the core; with ``stalls``, the wait counts as a stall."""
    if stalls and own[at.STALL_BEGUN] == 0:
        own[at.STALL_BEGUN] = now()
    leave_guest(vm, vcpu, at.OUTSIDE)
    give_core(vm)


@compiled
def look(vm: Words, load: Words, own: Own, vcpu: U64) -> bool:
    """Look for pauses and requests and carry them out; False if the VM stops."""
    if load_acquire(vm, at.PAUSED) != 0:
        own[at.PAUSES] += _ONE
        leave_core(vm, own, vcpu, True)
        return enter_guest(vm, load, own, vcpu)
    if load_acquire(vm, at.VCPUS + at.VCPU * vcpu + at.REQUESTED) != own[at.ACKED]:
        service(vm, load, own, vcpu)
    return True


@compiled
def stay_in_reader(vm: Words, load: Words, srcu: Words, own: Own, vcpu: U64) -> bool:
    """The slow vCPU: sleep inside a read-side section, outside the guest, its core given away; False on stop."""
    own[at.SLOW_SECTIONS] += _ONE
    srcu_enter(srcu, u64(0), own[at.READER])
    leave_guest(vm, vcpu, at.IN_HOST)
    give_core(vm)
    wait_for(vm, at.STOP, u64(0), own[at.SLOW_NS])
    srcu_exit(srcu, u64(0), own[at.READER])
    leave_guest(vm, vcpu, at.OUTSIDE)
    return enter_guest(vm, load, own, vcpu)


@compiled
def end_slice(vm: Words, load: Words, srcu: Words, own: Own, vcpu: U64) -> bool:
    """Every few thousand accesses: stop, be slow, or let another vCPU have the core; False on stop."""
    if load_relaxed(vm, at.STOP) != 0:
        leave_core(vm, own, vcpu, False)
        return False
    if own[at.SLOW_NS] != 0:
        return stay_in_reader(vm, load, srcu, own, vcpu)
    if cores_wanted(vm):
        leave_core(vm, own, vcpu, False)
        return enter_guest(vm, load, own, vcpu)
    return True


@compiled
def wait_out_flux(vm: Words, load: Words, own: Own, vcpu: U64) -> bool:
    """Sleep outside the guest and outside any read-side section until the ranges in flux have changed."""
    own[at.FLUX_STALLS] += _ONE
    flux = own[at.STALL_FLUX]
    leave_core(vm, own, vcpu, True)
    while load_acquire(vm, at.FLUX) == flux and load_relaxed(vm, at.STOP) == 0:
        wait(vm, at.FLUX, flux)
    return enter_guest(vm, load, own, vcpu)


@compiled
def wait_out_invalid(vm: Words, load: Words, own: Own, vcpu: U64, swaps: U64) -> bool:
    """Retry an access to an INVALID slot after the next swap.

    KVM on x86 lets the vCPU run into the fault again at once, and again (``kvm_mmu_faultin_pfn()``); here it sleeps
    until something can have changed, so that its spinning does not keep the updater from its core.
    """
    own[at.INVALID_RETRIES] += _ONE
    leave_core(vm, own, vcpu, True)
    if load_acquire(vm, at.SWAPS) == swaps and load_relaxed(vm, at.STOP) == 0:
        wait_for(vm, at.SWAPS, swaps, _RETRY_NS)
    return enter_guest(vm, load, own, vcpu)


@compiled
def wait_out_update(vm: Words, load: Words, own: Own, vcpu: U64) -> bool:
    """An exit that fell into an update: sleep outside until that is over; the access is then made again."""
    own[at.EXITS_HELD] += _ONE
    leave_core(vm, own, vcpu, True)
    updates = load_acquire(vm, at.UPDATES)
    while updates & _ONE != 0 and load_relaxed(vm, at.STOP) == 0:
        wait(vm, at.UPDATES, updates)
        updates = load_acquire(vm, at.UPDATES)
    return enter_guest(vm, load, own, vcpu)


@compiled
def next_look(own: Own) -> U64:
    """After how many accesses to look for requests again; notes whether that is late."""
    random = next_random(own)
    if random & LATE_ONCE_IN != 0:
        own[at.LATE] = u64(0)
        return POLL
    own[at.LATE] = random | _ONE
    return LATE_POLL
