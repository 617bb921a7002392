"""Exits that fall into an update: answered when it is over, so that the guest never sees the hole (``exit_retry``).

MMIO: with the update lock held shared, so that every slot stays, one fragment is answered from the memory that is
there now; KVM_RUN with ``immediate_exit`` lets the emulator go on with the instruction, fragment by fragment, until it
is complete (EINTR). Its own compare-and-exchange then meets real memory. Registers are neither saved nor restored.

Failed fetches carry no address: the run is repeated if an update was in flight since it began, else it is genuine.
"""

from __future__ import annotations

from ...atomics import fence, host_load, host_store, load_acquire, load_relaxed, store_release, wait_for
from ...compiled import ONE, U64, Own, Words, compiled, const, u64
from ...system import (
    SYS_IOCTL,
    failed,
    host_load16,
    host_load32,
    host_may_access,
    system_call,
)
from . import layout as at
from .abi import RUN_EXIT_REASON, RUN_FLAGS, RUN_IMMEDIATE_EXIT, RUN_LENGTH, RUN_PHYS_ADDR
from .address_map import MAP_HOST, SPACE_SHIFT, map_find, map_readonly, was_readonly
from .fragments import land, load_fragment, store_fragment
from .kicks import leave
from .stalls import begin_stall, end_stall
from .update_lock import give_shared, try_shared, updates_since, wait_out_update
from .x86.instruction_bytes import set_registers
from .x86.instructions import AGAIN, REFUSED, verdict

__all__ = [
    "EINTR",
    "KVM_RUN",
    "MMIO",
    "NEXT_FRAGMENT",
    "after_fetch",
    "complete",
    "complete_device",
    "finish_pending",
    "retry_fetch",
    "retry_mmio",
]

KVM_RUN = const(0xAE80)
EINTR = const(4)
_EFAULT = const(14)
_EOPNOTSUPP = const(95)
MMIO = const(6)
_PAGE = const(0xFFF)
_BYTE = const(0xFF)
_SIZE = const(0xFFFFFFFF)
NEXT_FRAGMENT = const(5)
"""Beside what vcpu_run returns: an MMIO exit of the same instruction."""


@compiled
def take_turn(vm: Words, own: Own, vcpu: U64) -> U64:
    """Take the update lock shared, and be inside KVM_RUN in the eyes of a pause, none of which is in force: GO_ON.

    STOPPED, and nothing taken, if the VM stops; SIGNALLED after a while for a caller that looks for signals.
    """
    while load_relaxed(vm, at.STOP) == 0:
        if try_shared(vm):
            store_release(vm, at.VCPUS + at.VCPU * vcpu + at.STATE, at.IN_KVM_RUN)
            fence()  # inside before we look for pauses: see kicks.py
            paused = load_acquire(vm, at.PAUSED)
            if paused == 0:
                end_stall(own)
                return at.GO_ON
            leave(vm, vcpu, at.OUTSIDE)
            give_shared(vm)
            begin_stall(own)
            wait_for(vm, at.PAUSED, paused, at.LOOK_NS)
        else:
            if own[at.STALL_BEGUN] == 0:
                own[at.HELD] += ONE
                begin_stall(own)
            wait_out_update(vm)
        if own[at.GUEST] == 0:
            return at.SIGNALLED
    own[at.STALL_BEGUN] = u64(0)
    return at.STOPPED


@compiled
def keep_turn(vm: Words, own: Own) -> U64:
    """HOLDING: take the update lock shared; a pause waits until we are done: GO_ON.

    STOPPED, and nothing taken, if the VM stops while an update is under way; SIGNALLED as ``take_turn``.
    """
    while not try_shared(vm):
        if own[at.STALL_BEGUN] == 0:
            own[at.HELD] += ONE
            begin_stall(own)
        if load_relaxed(vm, at.STOP) != 0:
            own[at.STALL_BEGUN] = u64(0)
            return at.STOPPED
        if not wait_out_update(vm) and own[at.GUEST] == 0:
            return at.SIGNALLED
    end_stall(own)
    return at.GO_ON


@compiled
def refused(own: Own) -> U64:
    """The exit is kept, and the vCPU stops: FAILED."""
    own[at.REFUSED] += ONE
    own[at.PENDING] = ONE
    own[at.ERRNO] = _EOPNOTSUPP
    return at.FAILED


@compiled
def retry_mmio(vm: Words, entries: Words, own: Own, vcpu: U64, straight: bool) -> U64:
    """Answer an MMIO exit from the slots that are there now and complete its instruction.

    ``straight``: the vCPU is HOLDING. GO_ON; EXIT for a fragment that no slot serves (a device, a write to read-only
    memory) and for any other exit; FAILED, with EFAULT where host memory is not there, or because the instruction
    cannot be answered (REFUSED); STOPPED, SIGNALLED. In these three the exit is kept for the next run, and signalled it
    goes on HOLDING. The lock is given back in each case, so a device may change memory itself.
    """
    run = own[at.RUN]
    status = keep_turn(vm, own) if straight else take_turn(vm, own, vcpu)
    if status != at.GO_ON:
        own[at.PENDING] = ONE
        if status == at.STOPPED:
            leave(vm, vcpu, at.OUTSIDE)
        return status
    own[at.STAGED] = u64(0)
    own[at.AHEAD] = u64(0)
    expected = u64(0)  # where a fragment would go on that the last one left at the end of a page
    again = own[at.KNOWN] == AGAIN
    while True:
        gpa = host_load(run + RUN_PHYS_ADDR)
        what = host_load(run + RUN_LENGTH)
        size = what & _SIZE
        writes = (what >> 32) & _BYTE != 0
        if gpa == expected and expected != 0:
            own[at.CROSSINGS] += ONE
        place = gpa | ((host_load16(run + RUN_FLAGS) & ONE) << SPACE_SHIFT)
        entry = map_find(entries, place)
        if again and (entry == 0 or writes):  # half of it is a device's: it cannot be undone
            status = refused(own)
            break
        if entry == 0 or (writes and not is_writable(entries, own, entry, place)):
            left_to_device(own, place, size, writes)
            status = at.EXIT
            break
        host = load_relaxed(entries, entry + MAP_HOST) + (place - load_relaxed(entries, entry))
        if own[at.KNOWN] == 0:
            said = verdict(entries, own, gpa, size, writes)
            if said == REFUSED:
                status = refused(own)
                break
            again = said == AGAIN
        if not host_may_access(host, writes):  # KVM_RUN says the same where it meets such memory itself
            own[at.PENDING] = ONE
            own[at.ERRNO] = _EFAULT
            status = at.FAILED
            break
        own[at.KNOWN] = AGAIN if again else ONE
        if writes:
            store_fragment(entries, own, entry, place, host, size)
        else:
            load_fragment(entries, own, place, host, size)
        own[at.RETRIED_ANSWERS] += ONE
        expected = u64(0)
        if (gpa + size) & _PAGE == 0:
            expected = gpa + size
        status = complete(own)
        if status != NEXT_FRAGMENT:
            break
    land(entries, own)
    if again and status == at.GO_ON and set_registers(own):
        own[at.AGAIN] += ONE  # KVM has dropped a fault that the emulator found, too
    host_store(run, u64(0))
    leave(vm, vcpu, at.OUTSIDE)
    give_shared(vm)
    return status


@compiled(nogil=True)
def finish_pending(vm: Words, entries: Words, own: Own, vcpu: U64) -> U64:
    """Carry out the exit that a stop kept, in place of the vCPU's thread, which does not run: see ``retry_mmio``.

    An exit that is a device's is kept on.
    """
    if own[at.PENDING] == 0 or host_load32(own[at.RUN] + RUN_EXIT_REASON) != MMIO:
        return at.GO_ON
    store_release(vm, at.VCPUS + at.VCPU * vcpu + at.STATE, at.HOLDING)
    status = at.SIGNALLED
    while status == at.SIGNALLED:
        own[at.PENDING] = u64(0)
        status = retry_mmio(vm, entries, own, vcpu, True)
    if status == at.EXIT:
        own[at.PENDING] = ONE
    return status


@compiled
def complete(own: Own) -> U64:
    """Have KVM go on with the instruction whose fragment is answered: GO_ON at its end, or what it left the guest for.

    Under the update lock. ``immediate_exit`` stays set.
    """
    run = own[at.RUN]
    host_store(run, RUN_IMMEDIATE_EXIT)
    error = failed(system_call(SYS_IOCTL, own[at.FD], KVM_RUN, u64(0)))
    if error == 0:
        if host_load32(run + RUN_EXIT_REASON) == MMIO:
            return NEXT_FRAGMENT
        own[at.DEVICE] = u64(0)
        own[at.KNOWN] = u64(0)
        return at.EXIT
    own[at.DEVICE] = u64(0)
    own[at.KNOWN] = u64(0)
    if error == EINTR:
        return at.GO_ON
    own[at.ERRNO] = error
    return at.FAILED


@compiled
def left_to_device(own: Own, place: U64, size: U64, writes: bool) -> None:
    """Note that a device answers this fragment: what it reads there it has to write there, too."""
    if own[at.DEVICE] == 0:
        own[at.DEVICE_START] = u64(0)
        own[at.DEVICE_END] = u64(0)
    own[at.DEVICE] = ONE
    if not writes:
        if own[at.DEVICE_END] == 0:
            own[at.DEVICE_START] = place
        own[at.DEVICE_END] = place + size


@compiled
def is_writable(entries: Words, own: Own, entry: U64, place: U64) -> bool:
    """Whether the instruction may write to the slot that is there now: not if it has read what was there before."""
    if map_readonly(entries, entry) or was_read_from_device(own, place):
        return False
    return not was_readonly(entries, place)


@compiled
def was_read_from_device(own: Own, place: U64) -> bool:
    """Whether the instruction in progress has read ``place`` (an address, and its space) from a device.

    Memory that an update puts there before the instruction writes must not get what was computed from the device.
    """
    return own[at.DEVICE] != 0 and own[at.DEVICE_START] <= place < own[at.DEVICE_END]


@compiled
def complete_device(vm: Words, own: Own, vcpu: U64) -> U64:
    """A device has answered: go on with the instruction while no update can begin.

    GO_ON at its end; NEXT_FRAGMENT; EXIT with another exit; FAILED; STOPPED or SIGNALLED, to be called again.
    """
    status = take_turn(vm, own, vcpu)
    if status != at.GO_ON:
        return status
    status = complete(own)
    host_store(own[at.RUN], u64(0))
    leave(vm, vcpu, at.HOLDING if status == NEXT_FRAGMENT else at.OUTSIDE)
    give_shared(vm)
    return status


@compiled
def retry_fetch(vm: Words, own: Own) -> bool:
    """After a failed emulation: whether it may be due to an update, which is to be waited for; else it is genuine."""
    if not updates_since(vm, own[at.BEGAN]):
        return False
    own[at.RETRIED_FETCHES] += ONE
    own[at.AFTER_FETCH] = ONE
    if load_acquire(vm, at.UPDATES) & ONE != 0:
        own[at.HELD] += ONE
        begin_stall(own)
    return True


@compiled
def after_fetch(vm: Words, own: Own) -> bool:
    """Whether the update that a failed fetch waits for is over, or the VM stops; a moment is waited, if not."""
    if not wait_out_update(vm) and load_relaxed(vm, at.STOP) == 0:
        return False
    own[at.AFTER_FETCH] = u64(0)
    end_stall(own)
    return True
