"""A vCPU whose accesses go through a TLB and a stage-2 table that the vCPUs' own faults build.

In the guest, an access is translated by the TLB and, on a miss, by a walk of the table in memory, without locks. A walk
that ends without a translation is an exit: the vCPU leaves the guest for the host (nobody who invalidates waits for it
there), handles the fault, enters again, looks for requests, and makes the access again.
"""

from __future__ import annotations

from ...atomics import load_acquire, load_relaxed, store_release
from ...clock import now
from ...compiled import U64, Own, Words, compiled, const, u64
from ...stage2.layout import IPA_END
from ...stage2.tlb_layout import CONFLICT, HOST_ADDRESS, OK, PERMISSION
from ...stage2.tlb_walk import tlb_enter, tlb_leave, tlb_look, tlb_translate
from ...stage2.words import Table
from .. import load_words
from . import layout as at
from .accesses import (
    FETCH,
    SAW_HOLE,
    SAW_READONLY,
    WRITE,
    is_held,
    kind_of,
    left_out,
    meet_hole,
    next_random,
    note,
    perform,
    perform_marked,
    pick,
    seen,
)
from .gmem_slot import MEMORY_FAULT, NUMBER, OTHER_FILE, Gmem, gmem_slot_fault
from .requests import leave_guest
from .user_mem_abort import stage2_fault
from .vcpu import (
    FILLED,
    IN_FILE,
    IN_FLUX,
    INVALID,
    POLL,
    READONLY,
    end_slice,
    enter_guest,
    leave_core,
    look,
    next_look,
    wait_out_flux,
    wait_out_invalid,
    wait_out_update,
)
from .words import Access, Sighting, Slots

__all__ = ["REACHED", "reach", "stage2_look", "stage2_vcpu_run"]

_ONE = const(1)

REACHED, ABANDONED = const(8), const(9)
"""What ``reach`` comes to, beside what an exit does."""


@compiled
def stage2_look(slots: Slots, load: Words, table: Table, tlb: Own, vcpu: U64) -> bool:
    """In the guest: apply invalidations, then look for pauses and requests; False if the VM stops."""
    vm, own = slots.vm, slots.own
    shape, pool, _pages, mmu, _desk = table
    tlb_look(shape, pool, mmu, tlb)
    base = at.VCPUS + at.VCPU * vcpu
    if load_acquire(vm, at.PAUSED) == 0 and load_acquire(vm, base + at.REQUESTED) == own[at.ACKED]:
        return True
    tlb_leave(mmu, tlb)
    running = look(vm, load, own, vcpu)
    if running:
        tlb_enter(shape, pool, mmu, tlb)
    return running


@compiled
def stage2_exit(
    slots: Slots, load: Words, table: Table, tlb: Own, gmem: Gmem, vcpu: U64, access: Access, protected: bool
) -> U64:
    """An exit for a fault, to its end: what it came to; back in the guest unless 0.

    0 stop, 1 make the access again, 2 it met a hole, 3 it had no right, 4 it met a hole and was answered from
    what was behind, 5 KVM_EXIT_MEMORY_FAULT, 6 make it again with another guest_memfd at hand.
    """
    vm, _memslots, _srcu, own = slots
    shape, pool, _pages, mmu, _desk = table
    gfn, kind, private, must, readonly, behind = access
    swaps = load_acquire(vm, at.SWAPS)
    updates = load_acquire(vm, at.UPDATES)
    tlb_leave(mmu, tlb)
    leave_guest(vm, vcpu, at.IN_HOST)
    writes = kind == WRITE
    own[at.FETCHES_NOW] = _ONE if kind == FETCH else u64(0)
    outcome = IN_FILE
    if not private:
        outcome = stage2_fault(slots, table, tlb, gfn, writes, protected)
    if outcome == IN_FILE:
        outcome = gmem_slot_fault(slots, table, gmem, gfn, private, writes)
    running = True
    came_to = u64(1)
    inside = False
    if outcome != IN_FLUX and load_acquire(vm, at.LOAD) != own[at.LOADED]:
        # Who gave it waited for nobody in the host, and may have changed memory since: this access was never made.
        inside = True
    elif outcome == FILLED:
        inside = True
        if must and load_relaxed(vm, at.WINDOW) != own[at.WINDOW_LOADED]:
            own[at.REFAULTS] += _ONE
    elif outcome == OTHER_FILE:
        inside = True
        came_to = u64(6)
    elif outcome == IN_FLUX:
        running = wait_out_flux(vm, load, own, vcpu)
    elif outcome == INVALID and load_relaxed(vm, at.RETRIES_INVALID) != 0:
        running = wait_out_invalid(vm, load, own, vcpu, swaps)
    elif outcome == READONLY or (kind == WRITE and must and readonly):
        if writes:
            own[at.READONLY_WRITES] += _ONE
        elif kind == FETCH:
            own[at.DENIED_FETCHES] += _ONE
        else:
            own[at.DENIED_READS] += _ONE
        came_to = u64(3)
        inside = True
    elif (updates & _ONE != 0 or load_acquire(vm, at.UPDATES) != updates) and is_held(vm, kind):
        running = wait_out_update(vm, load, own, vcpu)
    elif outcome == MEMORY_FAULT:
        # No instruction was emulated, so a VMM may run it again (above); one that finds nothing to convert ends the
        # guest.
        own[at.MEMORY_FAULTS] += _ONE
        if must:
            own[at.KILLED_FETCHES] += _ONE
        came_to = u64(5)
        inside = True
    else:
        came_to = u64(2)
        if meet_hole(vm, own, kind, must, behind) != SAW_HOLE:
            came_to = u64(4)
        inside = True
    if not running:
        return u64(0)
    if inside:
        # tlb_enter's fence also stands between this store and the look for requests.
        store_release(vm, at.VCPUS + at.VCPU * vcpu + at.MODE, at.IN_GUEST)
    tlb_enter(shape, pool, mmu, tlb)
    if came_to != 1:
        own[at.LOOKS] = _ONE  # requests made meanwhile waited for nobody: look after this access
    elif not stage2_look(slots, load, table, tlb, vcpu):
        return u64(0)
    return came_to


@compiled(inline=True)
def reach(slots: Slots, load: Words, table: Table, tlb: Own, gmem: Gmem, vcpu: U64, ipa: U64, access: Access) -> U64:
    """Have an access translated, by way of as many exits as that takes: REACHED, and tlb[HOST_ADDRESS] is the place.

    Else what an exit came to (``stage2_exit``: any but 1), or ABANDONED: another load is in force since the exit.
    """
    epoch = slots.own[at.LOADED]
    while True:
        status = tlb_translate(table.shape, table.pool, table.mmu, tlb, ipa, ipa, _ONE << access.kind)
        if status == OK:
            return REACHED
        if status != CONFLICT:
            came_to = stage2_exit(slots, load, table, tlb, gmem, vcpu, access, status == PERMISSION)
            if came_to != 1:
                return came_to
            if slots.own[at.LOADED] != epoch:
                return ABANDONED


@compiled(inline=True)
def stage2_access(slots: Slots, load: Words, table: Table, tlb: Own, gmem: Gmem, vcpu: U64) -> bool:
    """One access, to its end; False if the VM stops."""
    vm, _memslots, _srcu, own = slots
    target = pick(own)
    if target == 0:
        return True
    gpa = load_relaxed(load, target + load_words.TARGET_GPA)
    flags = load_relaxed(load, target + load_words.TARGET_FLAGS)
    behind = load_relaxed(load, target + load_words.TARGET_OLD)
    random = next_random(own)
    kind = kind_of(own, random)
    old = seen(behind, kind, flags & load_words.OLD_READONLY != 0)
    new = seen(load_relaxed(load, target + load_words.TARGET_NEW), kind, flags & load_words.NEW_READONLY != 0)
    if old != 0 and flags >> (load_words.OLD_DENIED + kind) & _ONE != 0:
        old = SAW_READONLY
    if new != 0 and flags >> (load_words.NEW_DENIED + kind) & _ONE != 0:
        new = SAW_READONLY
    if left_out(own, random, old):
        return True
    begun = load_acquire(vm, at.WINDOW)
    start = u64(0)
    if old != new and begun & _ONE != 0:
        start = now()
    saw = SAW_HOLE
    private = flags & load_words.PRIVATE != 0
    ipa = gpa
    if private:
        ipa |= table.shape[IPA_END] >> _ONE
    readonly = old == SAW_READONLY or new == SAW_READONLY
    made = Access(gpa >> 12, kind, private, flags & load_words.MUST != 0, readonly, behind)
    came_to = reach(slots, load, table, tlb, gmem, vcpu, ipa, made)
    if came_to == REACHED:
        saw = tlb[HOST_ADDRESS]
        if flags & load_words.MARKED != 0:
            perform_marked(own, saw, kind, private, random)
        else:
            perform(own, saw, kind)
    elif came_to == 0:
        return False
    elif came_to == 6:
        return True
    elif came_to == ABANDONED:
        own[at.ABANDONED] += _ONE
        return True
    elif came_to == 3:
        saw = SAW_READONLY
    elif came_to == 4:
        saw = behind
    own[at.ACCESSES] += _ONE
    window = load_acquire(vm, at.WINDOW)
    if window != own[at.WINDOW_LOADED]:
        note(vm, own, vcpu, gpa, flags, Sighting(old, new, saw, begun, window, start))
    return True


@compiled(nogil=True)
def stage2_vcpu_run(slots: Slots, load: Words, table: Table, tlb: Own, gmem: Gmem, vcpu: U64, as_id: U64) -> bool:
    """Run a vCPU on the table of address space ``as_id``, with the words of one guest_memfd at hand.

    True: go on with another table, or with file own[FILE]; False: stop.
    """
    vm, _memslots, srcu, own = slots
    mmu = table.mmu
    number = load_relaxed(gmem.file, NUMBER)
    own[at.FILE] = number
    running = enter_guest(vm, load, own, vcpu)
    if running:
        tlb_enter(table.shape, table.pool, mmu, tlb)
    left = own[at.SLICE]
    until_look = POLL
    while running and own[at.AS_ID] == as_id and own[at.FILE] == number:
        running = stage2_access(slots, load, table, tlb, gmem, vcpu)
        until_look -= _ONE
        if own[at.LOOKS] != 0 and running:
            own[at.LOOKS] = u64(0)
            running = stage2_look(slots, load, table, tlb, vcpu)
        if until_look == 0 and running:
            until_look = next_look(own)
            running = stage2_look(slots, load, table, tlb, vcpu)
            if left > until_look:
                left -= until_look
            elif running:
                left = own[at.SLICE]
                tlb_leave(mmu, tlb)
                running = end_slice(vm, load, srcu, own, vcpu)
                if running:
                    tlb_enter(table.shape, table.pool, mmu, tlb)
    if running:
        tlb_leave(mmu, tlb)
        leave_core(vm, own, vcpu, False)
    return running
