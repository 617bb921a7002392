"""A vCPU's loop around KVM_RUN: compiled, without the GIL, no Python between an exit and the next entry.

It leaves for Python only with an exit that it does not handle. What an exit in a hole leads to, the word HOLES says:
report it, answer it at once from the memory behind, or retry. With a load guest (``load_guest.py``) it counts what the
guest's accesses met, and starts a killed guest again.
"""

from __future__ import annotations

from ...atomics import compare_exchange, fence, host_store, load_acquire, load_relaxed, store_release, wait_for
from ...compiled import ONE, U64, Own, Words, compiled, const, u64
from ...system import SYS_IOCTL, failed, host_load32, system_call
from . import layout as at
from .abi import RUN_EXIT_REASON, RUN_UNION
from .answers import EINTR, KVM_RUN, MMIO, NEXT_FRAGMENT, after_fetch, complete_device, retry_fetch, retry_mmio
from .kicks import acknowledge, leave
from .load_exits import count_kill, count_mmio
from .stalls import begin_stall, end_stall

__all__ = ["claim", "vcpu_run", "vcpu_run_for"]

_INTERNAL_ERROR = const(17)
_EMULATION_FAILED, _DELIVERY = const(1), const(3)


@compiled
def enter(vm: Words, own: Own, vcpu: U64) -> U64:
    """Wait for the end of pauses and go inside: GO_ON, STOPPED, or SIGNALLED for a caller that looks for signals."""
    base = at.VCPUS + at.VCPU * vcpu
    while True:
        # Cleared, and said to be inside, before we look at what is asked for: see kicks.py.
        host_store(own[at.RUN], u64(0))
        store_release(vm, base + at.STATE, at.IN_KVM_RUN)
        fence()
        requested = load_acquire(vm, base + at.REQUESTED)
        if requested != own[at.ACKED]:
            own[at.ACKED] = requested
            store_release(vm, base + at.DONE, requested)
            acknowledge(vm)
        paused = load_acquire(vm, at.PAUSED)
        if load_relaxed(vm, at.STOP) != 0:
            leave(vm, vcpu, at.OUTSIDE)
            own[at.STALL_BEGUN] = u64(0)
            return at.STOPPED
        if paused == 0:
            end_stall(own)
            own[at.BEGAN] = load_acquire(vm, at.UPDATES)
            return at.GO_ON
        begin_stall(own)
        own[at.PAUSES] += ONE
        leave(vm, vcpu, at.OUTSIDE)
        wait_for(vm, at.PAUSED, paused, at.LOOK_NS)
        if own[at.GUEST] == 0:
            return at.SIGNALLED


@compiled
def handle_mmio(vm: Words, entries: Words, own: Own, vcpu: U64, straight: bool) -> U64:
    """An MMIO exit: retried, if that is what HOLES says, else left to others: GO_ON, EXIT, FAILED or STOPPED.

    ``straight``: the vCPU is HOLDING it.
    """
    own[at.MMIO_EXITS] += ONE
    if load_relaxed(vm, at.HOLES) == at.RETRY:
        return retry_mmio(vm, entries, own, vcpu, straight)
    if straight:
        leave(vm, vcpu, at.OUTSIDE)
    return at.EXIT


@compiled
def run_once(vm: Words, entries: Words, own: Own, vcpu: U64) -> U64:
    """Enter the guest once, or go on with an instruction that an exit has cut short."""
    if own[at.PENDING] != 0:
        own[at.PENDING] = u64(0)
        if host_load32(own[at.RUN] + RUN_EXIT_REASON) != MMIO:
            return at.EXIT
        return handle_mmio(vm, entries, own, vcpu, load_relaxed(vm, at.VCPUS + at.VCPU * vcpu + at.STATE) == at.HOLDING)
    if own[at.DEVICE] != 0:
        status = complete_device(vm, own, vcpu)
        if status == NEXT_FRAGMENT:
            return handle_mmio(vm, entries, own, vcpu, True)
        return status
    if own[at.AFTER_FETCH] != 0 and not after_fetch(vm, own):
        return at.SIGNALLED if own[at.GUEST] == 0 else at.GO_ON
    status = enter(vm, own, vcpu)
    if status != at.GO_ON:
        return status
    error = failed(system_call(SYS_IOCTL, own[at.FD], KVM_RUN, u64(0)))
    own[at.EXITS] += ONE
    if error == 0 and host_load32(own[at.RUN] + RUN_EXIT_REASON) == MMIO:
        # A store that exits is behind rip already: a pause may not take this vCPU for one that is between instructions.
        leave(vm, vcpu, at.HOLDING)
        return handle_mmio(vm, entries, own, vcpu, True)
    leave(vm, vcpu, at.OUTSIDE)
    if error == EINTR:
        own[at.INTERRUPTED] += ONE
        if own[at.GUEST] == 0:
            return at.SIGNALLED
        return at.GO_ON
    if error != 0:
        own[at.ERRNO] = error
        return at.FAILED
    return at.EXIT


@compiled
def is_due_to_update(vm: Words, own: Own) -> bool:
    """Whether the exit is a failed emulation that an update can have caused: then that is over, and the guest runs on.

    What failed is a fetch, or an instruction that the emulator does not know (cmpxchg16b), which runs natively now; or
    the delivery of an event, on hosts that deliver it again (REDELIVERS).
    """
    if load_relaxed(vm, at.HOLES) != at.RETRY or host_load32(own[at.RUN] + RUN_EXIT_REASON) != _INTERNAL_ERROR:
        return False
    suberror = u64(host_load32(own[at.RUN] + RUN_UNION))
    if suberror != _EMULATION_FAILED and (suberror != _DELIVERY or load_relaxed(vm, at.REDELIVERS) == 0):
        return False
    return retry_fetch(vm, own)


@compiled(nogil=True)
def vcpu_run(vm: Words, entries: Words, own: Own, vcpu: U64) -> U64:
    """Run a vCPU until it stops or has an exit that Python has to see: STOPPED, EXIT, SIGNALLED or FAILED."""
    while True:
        status = run_once(vm, entries, own, vcpu)
        if status == at.EXIT and is_due_to_update(vm, own):
            status = at.GO_ON
        if status == at.EXIT and own[at.GUEST] != 0:
            reason = u64(host_load32(own[at.RUN] + RUN_EXIT_REASON))
            status = count_mmio(vm, own) if reason == MMIO else count_kill(own, reason)
        if status != at.GO_ON:
            return status


@compiled(nogil=True)
def claim(vm: Words, vcpu: U64, tid: U64) -> U64:
    """Have the vCPU to oneself until TID is 0 again: 0, or whoever has it already.

    Whoever is at its registers is waited for: that takes microseconds.
    """
    place = at.VCPUS + at.VCPU * vcpu + at.TID
    while True:
        holder = compare_exchange(vm, place, u64(0), tid)
        if holder != at.AT_REGISTERS:
            return holder
        wait_for(vm, place, holder, u64(100_000))


@compiled(nogil=True)
def vcpu_run_for(vm: Words, entries: Words, own: Own, vcpu: U64, tid: U64, stops: U64) -> U64:
    """``vcpu_run`` for thread ``tid``, which has the vCPU for as long as this call: TAKEN if another one has it.

    No Python in between, so no exception can leave it taken, or lose an exit: that is given again until UNTAKEN is 0.
    STOPPED also if STOPS is not ``stops`` any more.
    """
    if claim(vm, vcpu, tid) != 0:
        return at.TAKEN
    status = at.EXIT
    if own[at.UNTAKEN] == 0:
        status = vcpu_run(vm, entries, own, vcpu)
    if status == at.EXIT:
        own[at.UNTAKEN] = u64(1)
    if status == at.SIGNALLED and load_acquire(vm, at.STOPS) != stops:
        status = at.STOPPED
    store_release(vm, at.VCPUS + at.VCPU * vcpu + at.TID, u64(0))
    return status
