"""Kicks and pauses: how an updater gets vCPUs to do something, and knows that they did.

Each vCPU has a count of the requests made to it and one of those it has carried out, and a mode. An updater makes its
requests, then waits for each vCPU that was in the guest when it looked. One that is outside carries its requests out
when it enters, before it uses its TLB. As ``kvm_make_all_cpus_request()`` and ``vcpu->mode`` in Linux 6.18,
``virt/kvm/kvm_main.c``; the argument is that of ``Documentation/virt/kvm/vcpu-requests.rst``.

The one subtle point is a store followed by a load of another word, on both sides: the updater stores a request and
looks at the mode, the vCPU stores its mode and looks at its requests. Both have a full fence in between, so at least
one of them sees the other.

The waits give up after a while (``patience``), so that Ctrl-C ends one that is never acknowledged.
"""

from __future__ import annotations

from ...atomics import fence, fetch_add, load_acquire, load_relaxed, store_release, wait_for, wake
from ...compiled import U64, Own, Words, compiled, const, u64
from ...patience import GAVE_UP, LOOKS, deadline, time_left
from .layout import ACKS, DONE, IN_GUEST, MODE, OUTSIDE, PAUSED, REQUESTED, SWAPS, VCPU, VCPUS, WAITING

__all__ = [
    "acknowledge",
    "leave_guest",
    "pause_all",
    "request_all",
    "resume_all",
    "wait_for_acknowledgements",
    "wait_until_outside",
    "wake_retries",
]

_ONE = const(1)
_MINUS_ONE = const(0xFFFFFFFFFFFFFFFF)
_EVERYBODY = const(0x7FFFFFFF)


@compiled
def acknowledge(vm: Words) -> None:
    """From a vCPU that has just changed its DONE or MODE: wake an updater that waits for it.

    The fence is the vCPU's half of: DONE or MODE stored before WAITING is looked at; the updater's half is in
    ``wait_for_acknowledgements``.
    """
    fence()
    if load_relaxed(vm, WAITING) != 0:
        fetch_add(vm, ACKS, _ONE)
        wake(vm, ACKS, _EVERYBODY)


@compiled
def leave_guest(vm: Words, vcpu: U64, mode: U64) -> None:
    """Leave the guest for ``mode``. Release: accesses through the TLB are over before an updater sees the mode."""
    store_release(vm, VCPUS + VCPU * vcpu + MODE, mode)
    acknowledge(vm)


@compiled
def request_all(vm: Words, vcpus: U64, targets: Own) -> None:
    """Make a request to every vCPU; ``targets[k]`` is what its DONE must reach. What is asked for is stored before."""
    vcpu = u64(0)
    while vcpu < vcpus:
        targets[vcpu] = fetch_add(vm, VCPUS + VCPU * vcpu + REQUESTED, _ONE) + _ONE
        vcpu += _ONE
    fence()  # requests are made before modes are looked at


@compiled
def _holds_up(vm: Words, vcpu: U64, target: U64) -> bool:
    """Whether the vCPU is in the guest and has not carried out request ``target`` yet."""
    base = VCPUS + VCPU * vcpu
    # Acquire, both: whatever the vCPU did through its old TLB is before what the updater does next.
    return load_acquire(vm, base + MODE) == IN_GUEST and load_acquire(vm, base + DONE) < target


@compiled
def _look(vm: Words, vcpus: U64, targets: Own) -> bool:
    """Look some times whether all have answered, before WAITING costs whoever answers a system call."""
    looks = u64(0)
    vcpu = u64(0)
    while vcpu < vcpus and looks < LOOKS:
        if _holds_up(vm, vcpu, targets[vcpu]):
            looks += _ONE
        else:
            vcpu += _ONE
    return vcpu == vcpus


@compiled
def _sleep(vm: Words, acks: U64, end: U64) -> U64:
    """Sleep until ACKS is no longer ``acks``, or the time ``end``: 1, or GAVE_UP."""
    left = time_left(end)
    if left == 0:
        return GAVE_UP
    wait_for(vm, ACKS, acks, left)
    return _ONE


@compiled(nogil=True)
def wait_for_acknowledgements(vm: Words, vcpus: U64, targets: Own) -> U64:
    """Wait until no vCPU is in the guest with a request of ``targets`` open; returns how often it slept."""
    slept = u64(0)
    if _look(vm, vcpus, targets):
        return slept
    end = deadline()
    fetch_add(vm, WAITING, _ONE)
    fence()
    vcpu = u64(0)
    while vcpu < vcpus:
        while slept & GAVE_UP == 0:
            acks = load_acquire(vm, ACKS)  # before the look: an acknowledgement in between ends the wait at once
            if not _holds_up(vm, vcpu, targets[vcpu]):
                break
            slept += _sleep(vm, acks, end)
        vcpu += _ONE
    fetch_add(vm, WAITING, _MINUS_ONE)
    return slept


@compiled(nogil=True)
def wait_until_outside(vm: Words, vcpus: U64) -> U64:
    """Wait until every vCPU is outside KVM_RUN; a pause is in force, so none comes back. Returns how often it slept."""
    slept = u64(0)
    end = deadline()
    fetch_add(vm, WAITING, _ONE)
    fence()
    vcpu = u64(0)
    while vcpu < vcpus:
        while slept & GAVE_UP == 0:
            acks = load_acquire(vm, ACKS)
            if load_acquire(vm, VCPUS + VCPU * vcpu + MODE) == OUTSIDE:
                break
            slept += _sleep(vm, acks, end)
        vcpu += _ONE
    fetch_add(vm, WAITING, _MINUS_ONE)
    return slept


@compiled
def wake_retries(vm: Words) -> None:
    """Have vCPUs that met an INVALID slot look again; what they are to see is published before."""
    fetch_add(vm, SWAPS, _ONE)
    wake(vm, SWAPS, _EVERYBODY)


@compiled
def pause_all(vm: Words) -> None:
    """Put a pause in force (they nest). Requests and the wait come after it, see ``wait_until_outside``."""
    fetch_add(vm, PAUSED, _ONE)


@compiled
def resume_all(vm: Words) -> None:
    """End one pause; the last one wakes the vCPUs."""
    if fetch_add(vm, PAUSED, _MINUS_ONE) == 1:
        wake(vm, PAUSED, _EVERYBODY)
