"""An update, phase by phase, compiled: edit the inactive set, publish it, wait, bring the other up to date.

Phases (``PHASE`` on the desk): idle -> editing -> swapped -> settled -> (mirror) idle. KVM's delete and move begin
with marking: idle -> marking -> marks swapped -> editing, now of the set without the marks, which is KVM's way back.
Which ids were touched is a chain through the desk; what each was and is stands in the two sets' tables, so undoing
and replaying are one function. Source: ``kvm_set_memslot()``, ``kvm_swap_active_memslots()``, Linux 6.18.

A function returns a status word: below ``FIRST_REASON`` a kind of change, else the reason why nothing was done.
"""

from __future__ import annotations

from ..atomics import load_relaxed, store_relaxed, store_release
from ..compiled import ONE, U64, Own, Words, compiled, compiled_copy, const, u64, wrapping
from . import checks
from .changes import Change
from .checks import Limits
from .edit import (
    CREATE,
    DELETE,
    MOVE,
    NOTHING,
    add,
    drop,
    edit,
    exchange_in_place,
    give_record,
    mark,
    origin,
)
from .layout import (
    ADDRESS_SPACES,
    AS_ID,
    ASKED_AS_ID,
    ASKED_ATTRIBUTES,
    ASKED_BASE_GFN,
    ASKED_FLAGS,
    ASKED_GUEST_MEMFD,
    ASKED_IDS,
    ASKED_NPAGES,
    ASKED_OFFSET,
    ASKED_SLOT,
    ASKED_USERSPACE_ADDR,
    ATTRIBUTES,
    BASE_GFN,
    CHAIN,
    DETAIL,
    EDITED,
    FLAGS,
    GENERATION,
    GUEST_MEMFD,
    GUEST_MEMFD_OFFSET,
    ID,
    IDS,
    KVM_MEM_MAX_NR_PAGES,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    NODE_WORDS,
    NPAGES,
    OTHER,
    PHASE,
    RECORD_FREE,
    RECORD_SHIFT,
    SET_WORDS,
    SETS,
    SPACE,
    SPACE_WORDS,
    SPACES,
    TABLE,
    TOUCHED,
    TOUCHED_COUNT,
    USERSPACE_ADDR,
    active_set,
)
from .lookup import last_before
from .slot import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_NR,
    KVM_MEMSLOT_NX,
    Slot,
)

IDLE, EDITING, MARKING, MARKS_SWAPPED, SWAPPED, SETTLED = (const(phase) for phase in range(6))
_AFTER_MARKS = const(8)
EDITING_AFTER_MARKS = const(9)
"""Bit of the phase EDITING: the active set holds INVALID copies, so the other must be published or undone."""

BATCH_WORDS = const(10)
"""Words of a change in a batch, as ``stage_batch`` takes them."""

FIRST_REASON = checks.FIRST_REASON
NO_SLOT, ID_BAD, OVERLAPS, NO_FILE, EXISTS, OUT_OF_PHASE, GPA_WRAPS = (
    const(reason)
    for reason in (
        checks.NO_SLOT,
        checks.ID_BAD,
        checks.OVERLAPS,
        checks.NO_FILE,
        checks.EXISTS,
        checks.OUT_OF_PHASE,
        checks.GPA_WRAPS,
    )
)

_FRAMES = const(1 << 52)
_LARGEST = const((1 << 64) - 1)
_GUEST_MEMFD = const(KVM_MEM_GUEST_MEMFD)
_USER_FLAGS = const(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEMSLOT_NR | KVM_MEMSLOT_NX)
_refused = compiled_copy(checks.refused)
_kind_of = compiled_copy(checks.kind_of)


@compiled
def _begin(memslots: Words, desk: Own, as_id: U64, phase: U64) -> None:
    """Start an update of an address space."""
    space = SPACES + SPACE_WORDS * as_id
    active = active_set(memslots, as_id)
    desk[SPACE] = space
    desk[OTHER] = active
    desk[EDITED] = space + space + SETS + SETS + SET_WORDS - active
    desk[PHASE] = phase


@compiled
def ask(desk: Own, id_: U64, gfn: U64, npages: U64, hva: U64, flags: U64, as_id: U64, ids: U64) -> None:
    """Write a change of a slot without guest_memfd to the desk. ``ids``: slot ids that may be used are below."""
    desk[ASKED_SLOT] = id_
    desk[ASKED_BASE_GFN] = gfn
    desk[ASKED_NPAGES] = npages
    desk[ASKED_USERSPACE_ADDR] = hva
    desk[ASKED_FLAGS] = flags
    desk[ASKED_AS_ID] = as_id
    desk[ASKED_GUEST_MEMFD] = u64(0)
    desk[ASKED_OFFSET] = u64(0)
    desk[ASKED_ATTRIBUTES] = u64(0)
    desk[ASKED_IDS] = ids


@compiled
def slot_at(memslots: Words, record: U64) -> Slot:
    """A record's fields; of record 0, which no slot has, none."""
    if record == 0:
        return Slot(record, record, record, record, record, record, record, record, record)
    words = record << RECORD_SHIFT
    return Slot(
        load_relaxed(memslots, words + AS_ID),
        load_relaxed(memslots, words + ID),
        load_relaxed(memslots, words + BASE_GFN),
        load_relaxed(memslots, words + NPAGES),
        load_relaxed(memslots, words + USERSPACE_ADDR),
        load_relaxed(memslots, words + FLAGS),
        load_relaxed(memslots, words + GUEST_MEMFD),
        load_relaxed(memslots, words + GUEST_MEMFD_OFFSET),
        load_relaxed(memslots, words + ATTRIBUTES),
    )


@compiled
def limits_of(address_spaces: U64, ids: U64, all_ids: U64) -> Limits:
    """What a set can hold; a host's own limits are narrower. KVM's own slots, above user space's, may be larger."""
    return Limits(
        ids,
        u64(0),
        _LARGEST - _USER_FLAGS,
        _LARGEST - _GUEST_MEMFD,
        _LARGEST,
        _LARGEST,
        address_spaces,
        KVM_MEM_MAX_NR_PAGES if ids < all_ids else _LARGEST,
    )


@compiled
def _judge(memslots: Words, desk: Own, set_: U64) -> U64:
    """The kind of the change that the desk asks for against a set, or the reason why it is refused. O(log n).

    A slot may overlap where it itself was.
    """
    asked = Change(
        desk[ASKED_SLOT],
        desk[ASKED_BASE_GFN],
        desk[ASKED_NPAGES],
        desk[ASKED_USERSPACE_ADDR],
        desk[ASKED_FLAGS],
        desk[ASKED_AS_ID],
        desk[ASKED_GUEST_MEMFD],
        desk[ASKED_OFFSET],
        desk[ASKED_ATTRIBUTES],
    )
    if asked.base_gfn >= _FRAMES or asked.npages >= _FRAMES:
        return GPA_WRAPS
    gpa = asked.base_gfn << 12
    size = asked.npages << 12
    limits = limits_of(load_relaxed(memslots, ADDRESS_SPACES), desk[ASKED_IDS], load_relaxed(memslots, IDS))
    reason = _refused(
        asked.slot, asked.as_id, asked.flags, gpa, size, asked.userspace_addr, asked.guest_memfd_offset, limits
    )
    if reason != 0:
        return reason
    old = load_relaxed(memslots, load_relaxed(memslots, set_ + TABLE) + asked.slot)
    desk[DETAIL] = old
    kind = _kind_of(asked, slot_at(memslots, old))
    if kind != CREATE and kind != MOVE:
        return kind
    near = last_before(memslots, set_, asked.base_gfn + asked.npages - ONE)
    if near != 0 and near == old:  # what overlaps, if anything, is the slot before it
        base = load_relaxed(memslots, (old << RECORD_SHIFT) + BASE_GFN)
        near = last_before(memslots, set_, base - ONE) if base > asked.base_gfn else u64(0)
    if near != 0 and near != old:
        base = load_relaxed(memslots, (near << RECORD_SHIFT) + BASE_GFN)
        npages = load_relaxed(memslots, (near << RECORD_SHIFT) + NPAGES)
        if base < asked.base_gfn + asked.npages and base + npages > asked.base_gfn:
            desk[DETAIL] = near
            return OVERLAPS
    if asked.flags & _GUEST_MEMFD != 0 and asked.guest_memfd == 0:
        return NO_FILE
    return kind


@compiled
def stage_asked(memslots: Words, desk: Own) -> U64:
    """Carry out the change that the desk asks for on the inactive set, seeing what earlier ones did. O(log n).

    Its kind, or the reason why it is refused, and then nothing is changed.
    """
    phase = desk[PHASE]
    if phase == IDLE:
        _begin(memslots, desk, desk[ASKED_AS_ID], EDITING)
    elif phase & (_AFTER_MARKS - ONE) != EDITING:
        return OUT_OF_PHASE
    kind = _judge(memslots, desk, desk[EDITED])
    if kind < NOTHING:
        edit(memslots, desk, kind)
    elif phase == IDLE:
        desk[PHASE] = IDLE
    return kind


@compiled
def stage_batch(memslots: Words, desk: Own, batch: Own, count: U64, ids: U64) -> U64:
    """Stage ``count`` changes, each in BATCH_WORDS words: a Change's fields, and room for its status. O(k log n).

    Returns how many were staged: the next is refused, with its reason as status.
    """
    entry = u64(0)
    while entry < count:
        at = entry * BATCH_WORDS
        ask(
            desk,
            batch[at],
            batch[at + ONE],
            batch[at + u64(2)],
            batch[at + u64(3)],
            batch[at + u64(4)],
            batch[at + u64(5)],
            ids,
        )
        desk[ASKED_GUEST_MEMFD] = batch[at + u64(6)]
        desk[ASKED_OFFSET] = batch[at + u64(7)]
        desk[ASKED_ATTRIBUTES] = batch[at + u64(8)]
        status = stage_asked(memslots, desk)
        batch[at + u64(9)] = status
        if status >= FIRST_REASON:
            return entry
        entry += ONE
    return count


@compiled
def stage(memslots: Words, desk: Own, slot: U64, gfn: U64, npages: U64, hva: U64, flags: U64, ids: U64) -> U64:
    """``ask`` and ``stage_asked``: one change of a slot without guest_memfd; ``slot``: as_id << 16 | id. O(log n)."""
    ask(desk, slot & u64(0xFFFF), gfn, npages, hva, flags, slot >> 16, ids)
    return stage_asked(memslots, desk)


@compiled
def invalidate(memslots: Words, desk: Own, as_id: U64, id_: U64) -> U64:
    """Mark one slot INVALID on the inactive set, before anything is staged; returns 0 or a reason. O(log n)."""
    phase = desk[PHASE]
    if phase != IDLE and phase != MARKING:
        return OUT_OF_PHASE
    if id_ >= load_relaxed(memslots, IDS):
        return ID_BAD
    if load_relaxed(memslots, load_relaxed(memslots, active_set(memslots, as_id) + TABLE) + id_) == 0:
        return NO_SLOT
    if phase == IDLE:
        _begin(memslots, desk, as_id, MARKING)
    if desk[CHAIN + id_] == 0:
        mark(memslots, desk, id_)
    return u64(0)


@compiled
def open_change(memslots: Words, desk: Own, create: bool) -> U64:
    """Begin one whole change as KVM does it: stage a CREATE or FLAGS_ONLY; mark the slot of a DELETE or MOVE.

    The desk asks for it. Returns its kind or a reason; with ``create``, a slot that exists is refused. O(log n).
    """
    if desk[PHASE] != IDLE:
        return OUT_OF_PHASE
    _begin(memslots, desk, desk[ASKED_AS_ID], EDITING)
    kind = _judge(memslots, desk, desk[EDITED])
    if create and CREATE < kind <= NOTHING:
        kind = EXISTS
    if DELETE <= kind <= MOVE:
        desk[PHASE] = MARKING
        mark(memslots, desk, desk[ASKED_SLOT])
    elif kind < NOTHING:
        edit(memslots, desk, kind)
    else:
        desk[PHASE] = IDLE
    return kind


@compiled
def publish(memslots: Words, desk: Own) -> bool:
    """The swap: make the edited set active; False if there is nothing edited. O(1).

    One release store: a reader that acquires the new index sees all that was edited, and the generation with bit 63.
    Readers that still are in the old set see it unchanged until the grace period is over.
    """
    phase = desk[PHASE]
    edited = desk[EDITED]
    if phase == MARKING:
        desk[PHASE] = MARKS_SWAPPED
    elif phase & (_AFTER_MARKS - ONE) == EDITING:
        desk[PHASE] = SWAPPED
    else:
        return False
    old = load_relaxed(memslots, desk[OTHER] + GENERATION)
    store_relaxed(memslots, edited + GENERATION, old | KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS)
    store_release(memslots, desk[SPACE], edited)
    desk[EDITED] = desk[OTHER]
    desk[OTHER] = edited
    return True


@compiled
def publish_both(memslots: Words, desk: Own, last: Own) -> None:
    """Publish two address spaces' updates, ``last`` last. O(1). Release, each: who sees the second sees both."""
    publish(memslots, desk)
    publish(memslots, last)


@compiled
def hand_over(desk: Own, other: Own) -> None:
    """Free records and nodes are one desk's at a time: give what this one knows of them to the other."""
    word = RECORD_FREE
    while word <= NODE_WORDS:
        other[word] = desk[word]
        word += ONE


@compiled
def settle(memslots: Words, desk: Own) -> bool:
    """After the grace period: the final generation; False if nothing was published. O(1).

    From here no reader is in the set that was active before, and it may be edited.
    """
    if desk[PHASE] == MARKS_SWAPPED:
        desk[PHASE] = EDITING_AFTER_MARKS
    elif desk[PHASE] == SWAPPED:
        desk[PHASE] = SETTLED
    else:
        return False
    active = desk[OTHER]
    old = load_relaxed(memslots, active + GENERATION) & (KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS - ONE)
    store_relaxed(memslots, active + GENERATION, wrapping(old + load_relaxed(memslots, ADDRESS_SPACES)))
    return True


@compiled
def bring(memslots: Words, desk: Own, undo: bool) -> bool:
    """Give each touched slot of the edited set the state it has in the active set: mirror, or undo. O(k log n).

    Mirror (after ``settle``): replay what was published on the set that was active before; then the update is over.
    Undo (while editing or marking): as it was before the update; after marks were published the update goes on, for
    the clean set must still be published and mirrored. First all that differs goes, then all that is missing comes,
    so no order of changes can collide. Records that are in neither set afterwards are free: nobody can see them.
    """
    phase = desk[PHASE]
    if undo:
        if phase != MARKING and phase & (_AFTER_MARKS - ONE) != EDITING:
            return False
    elif phase != SETTLED:
        return False
    edited = desk[EDITED]
    stale = load_relaxed(memslots, edited + TABLE)
    right = load_relaxed(memslots, desk[OTHER] + TABLE)
    link = desk[TOUCHED]
    while link != 0:
        id_ = link - ONE
        link = desk[CHAIN + id_] - ONE
        old = load_relaxed(memslots, stale + id_)
        new = load_relaxed(memslots, right + id_)
        if undo:
            new = origin(memslots, new)
        if old != 0 and old != new:
            if new == 0 or not exchange_in_place(memslots, desk, edited, old, new):
                drop(memslots, desk, edited, old)
            before = origin(memslots, old)
            if before != old and before != new:
                give_record(memslots, desk, before)
            give_record(memslots, desk, old)
    over = phase < _AFTER_MARKS
    link = desk[TOUCHED]
    while link != 0:
        id_ = link - ONE
        link = desk[CHAIN + id_] - ONE
        new = load_relaxed(memslots, right + id_)
        if undo:
            new = origin(memslots, new)
        if new != 0 and load_relaxed(memslots, stale + id_) != new:
            add(memslots, desk, edited, new)
        if over:
            desk[CHAIN + id_] = u64(0)
    if over:
        desk[TOUCHED] = u64(0)
        desk[TOUCHED_COUNT] = u64(0)
        desk[PHASE] = IDLE
    return True
