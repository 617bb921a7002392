"""One change of a slot on running vCPUs, as KVM does it today, in one compiled call for each swap.

Publish, wait for readers, bring the other set up to date, kick: what an update does between its checks and its zap
takes less time than Python needs to ask for it step by step. Source: ``kvm_set_memslot()``,
``kvm_swap_active_memslots()``, Linux 6.18, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...atomics import load_relaxed, store_relaxed
from ...clock import now
from ...clock import stopwatch as _clock
from ...compiled import U64, Own, Words, compiled, const, u64
from ...memslots import KVM_MEM_LOG_DIRTY_PAGES, Change, ChangeKind
from ...memslots.changes import KINDS
from ...memslots.edit import DELETE, FLAGS_ONLY, MOVE, NOTHING
from ...memslots.layout import (
    ASKED_SLOT,
    BASE_GFN,
    DIRTY_BITMAP,
    EDITED,
    NPAGES,
    OTHER,
    PHASE,
    RECORD_SHIFT,
    TABLE,
    active_set,
)
from ...memslots.phases import (
    FIRST_REASON,
    SETTLED,
    bring,
    open_change,
    publish,
    settle,
    stage_asked,
)
from ...memslots.refusal import refusal
from ...patience import GAVE_UP, deadline
from ...rcu.srcu import srcu_start, srcu_wait_for
from .requests import request_all, wake_retries

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["TOOK_WORDS", "attach", "attach_now", "begin_region", "end_region", "finish_swap", "set_memory_region"]

# What a call leaves for its caller: times in ns, waits that slept, frames of the slot that goes.
EDIT_NS, KICK_NS, GRACE_NS, SLEPT, START_GFN, END_GFN = (const(word) for word in range(6))
TOOK_WORDS = const(6)
_ONE = const(1)
_GAVE_UP, _NOTHING, _DELETE, _MOVE, _FLAGS_ONLY = (int(word) for word in (GAVE_UP, NOTHING, DELETE, MOVE, FLAGS_ONLY))


@compiled
def attach(memslots: Words, desk: Own, id_: U64, bitmap: U64) -> None:
    """Write a dirty bitmap's address into a slot's record in the set being edited, which nobody reads yet."""
    record = load_relaxed(memslots, load_relaxed(memslots, desk[EDITED] + TABLE) + id_)
    if record != 0:
        store_relaxed(memslots, (record << RECORD_SHIFT) + DIRTY_BITMAP, bitmap)


@compiled
def attach_now(memslots: Words, as_id: U64, id_: U64, bitmap: U64) -> None:
    """Write a dirty bitmap's address into a slot's record, which both sets have, while no vCPU runs."""
    record = load_relaxed(memslots, load_relaxed(memslots, active_set(memslots, as_id) + TABLE) + id_)
    if record != 0:
        store_relaxed(memslots, (record << RECORD_SHIFT) + DIRTY_BITMAP, bitmap)


@compiled
def finish_swap(vm: Words, vcpus: U64, targets: Own, memslots: Words, desk: Own, took: Own) -> None:
    """After the grace period: the other set too, unless it has what was published without marks; kick all vCPUs.

    x86 kicks after each swap, to have vCPUs re-validate what they remember; those that met an INVALID slot look again.
    """
    begun = now()
    settle(memslots, desk)
    if desk[PHASE] == SETTLED:
        bring(memslots, desk, False)
    edited = now()
    took[EDIT_NS] += edited - begun
    request_all(vm, vcpus, targets)
    wake_retries(vm)
    took[KICK_NS] += now() - edited


@compiled
def _swap(vm: Words, vcpus: U64, targets: Own, memslots: Words, desk: Own, srcu: Words, took: Own) -> bool:
    """Publish, wait for readers, finish; False if they take too long: the caller waits and calls ``finish_swap``."""
    publish(memslots, desk)
    begun = now()
    slept = srcu_wait_for(srcu, u64(0), vcpus + _ONE, srcu_start(srcu, u64(0)), deadline())
    took[GRACE_NS] += now() - begun
    took[SLEPT] += slept & ~GAVE_UP
    if slept & GAVE_UP != 0:
        return False
    finish_swap(vm, vcpus, targets, memslots, desk, took)
    return True


@compiled(nogil=True)
def begin_region(
    vm: Words,
    vcpus: U64,
    targets: Own,
    memslots: Words,
    desk: Own,
    srcu: Words,
    took: Own,
    bitmap: U64,
) -> U64:
    """The change that the desk asks for, up to its first swap: all of a CREATE or FLAGS_ONLY, else the INVALID mark.

    Its kind, or the reason why not; with GAVE_UP if the swap is to be finished. ``bitmap``: address of the slot's dirty
    bitmap from now on, 0 for none.
    """
    word = u64(0)
    while word < TOOK_WORDS:
        took[word] = u64(0)
        word += _ONE
    begun = now()
    kind = open_change(memslots, desk, False)
    if kind >= NOTHING:
        return kind
    if DELETE <= kind <= MOVE:
        record = load_relaxed(memslots, load_relaxed(memslots, desk[OTHER] + TABLE) + desk[ASKED_SLOT]) << RECORD_SHIFT
        took[START_GFN] = load_relaxed(memslots, record + BASE_GFN)
        took[END_GFN] = took[START_GFN] + load_relaxed(memslots, record + NPAGES)
    elif bitmap != 0:
        attach(memslots, desk, desk[ASKED_SLOT], bitmap)
    took[EDIT_NS] += now() - begun
    if not _swap(vm, vcpus, targets, memslots, desk, srcu, took):
        return kind | GAVE_UP
    return kind


@compiled(nogil=True)
def end_region(
    vm: Words,
    vcpus: U64,
    targets: Own,
    memslots: Words,
    desk: Own,
    srcu: Words,
    took: Own,
    bitmap: U64,
) -> bool:
    """The second half of a DELETE or MOVE, after the zap; False if its swap is to be finished."""
    begun = now()
    stage_asked(memslots, desk)
    if bitmap != 0:
        attach(memslots, desk, desk[ASKED_SLOT], bitmap)
    took[EDIT_NS] += now() - begun
    return _swap(vm, vcpus, targets, memslots, desk, srcu, took)


def set_memory_region(engine: SoftEngine, change: Change) -> ChangeKind:
    """KVM_SET_USER_MEMORY_REGION on ``engine``; MemslotError as the kernel refuses it, before any slot is touched."""
    begun, memslots = _clock(), engine.memslots
    slots = memslots.update(change.as_id)
    engine.counts.lock_ns += _clock() - begun
    try:
        with engine.files.changing(change):
            kind = _carry_out(engine, change)
    except BaseException as error:
        left = memslots.desk[PHASE]
        slots.abort(patient=isinstance(error, Exception))
        if left:  # INVALID marks that were published are taken back by now
            engine.wake_retries()
        raise
    slots.abort()
    return kind


def _carry_out(engine: SoftEngine, change: Change) -> ChangeKind:
    memslots, counts = engine.memslots, engine.counts
    memslots.ask(change, memslots.max_slots)
    dirty = engine.dirty
    logged = change.flags & KVM_MEM_LOG_DIRTY_PAGES or dirty.concerns(change)
    bitmap = dirty.bitmap_after(change) if logged else None
    words = engine.region_words()
    took = words[-1]
    address = 0 if bitmap is None else bitmap.address
    kind = int(begin_region(*words, address))
    if kind & _GAVE_UP:
        kind -= _GAVE_UP
        _wait(engine)
    if kind >= _NOTHING:
        if kind >= FIRST_REASON:
            raise refusal(memslots, kind, change, memslots.max_slots)
        return ChangeKind.NOTHING
    swaps = 1
    if _DELETE <= kind <= _MOVE:
        engine.flush_shadow(change.as_id, ((int(took[START_GFN]), int(took[END_GFN])),), ())
        if not end_region(*words, address):
            _wait(engine)
        swaps = 2
    if logged:
        dirty.carried_out(change, bitmap)
    if kind == _FLAGS_ONLY:
        _protect(engine, change)
    edit, kick, grace, slept, *_ = took.tolist()
    counts.swaps += swaps
    counts.srcu_waits += swaps
    counts.kicks += swaps * engine.vcpus
    counts.edit_ns += edit
    counts.request_ns += kick
    counts.grace_ns += grace
    counts.slept += slept
    return KINDS[kind]


def _protect(engine: SoftEngine, change: Change) -> None:
    """Logging was switched on: write-protect, and split what is large; or off, and nobody loses a right."""
    dirty, start, end = engine.dirty, change.base_gfn, change.base_gfn + change.npages
    if not change.flags & KVM_MEM_LOG_DIRTY_PAGES:
        dirty.disable(change.as_slot())
        return
    if not dirty.initially_set:
        engine.flush_shadow(change.as_id, (), ((start, end),))
    dirty.enable(change.as_id, start, end)


def _wait(engine: SoftEngine) -> None:
    """Go on with a swap whose readers take long; Ctrl-C ends the wait."""
    begun = _clock()
    engine.counts.slept += engine.srcu.synchronize()
    engine.counts.grace_ns += _clock() - begun
    vm, vcpus, targets, memslots, desk, _, took = engine.region_words()
    finish_swap(vm, vcpus, targets, memslots, desk, took)
