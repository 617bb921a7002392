"""An update, phase by phase, compiled: edit the inactive set, publish it, wait, bring the other up to date.

Phases (``PHASE`` on the desk): idle -> editing -> swapped -> settled -> (mirror) idle. KVM's delete and move begin
with marking: idle -> marking -> marks swapped -> editing, now of the set without the marks, which is KVM's way back.
Which ids were touched is a chain through the desk; what each was and is stands in the two sets' tables, so undoing
and replaying are one function. Source: ``kvm_set_memslot()``, ``kvm_swap_active_memslots()``, Linux 6.18.

A function returns a status word: below ``FIRST_REASON`` a kind of change, else the reason why nothing was done.
"""

from __future__ import annotations

from ..atomics import load_relaxed, store_relaxed, store_release
from ..compiled import U64, Own, Words, compiled, const, u64, wrapping
from .edit import (
    CREATE,
    DELETE,
    FLAGS_ONLY,
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
    BASE_GFN,
    CHAIN,
    DETAIL,
    EDITED,
    FLAGS,
    GENERATION,
    IDS,
    KVM_MEM_MAX_NR_PAGES,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    NPAGES,
    OTHER,
    PHASE,
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

__all__ = [
    "DELETE",
    "EDITING",
    "EDITING_AFTER_MARKS",
    "EXISTS",
    "FIRST_REASON",
    "FLAGS_BAD",
    "GFN_WRAPS",
    "HVA_DIFFERS",
    "HVA_UNALIGNED",
    "HVA_WRAPS",
    "IDLE",
    "ID_BAD",
    "MARKING",
    "MARKS_SWAPPED",
    "MOVE",
    "NOTHING",
    "NO_SLOT",
    "NPAGES_DIFFER",
    "OUT_OF_PHASE",
    "OVERLAPS",
    "READONLY_DIFFERS",
    "SETTLED",
    "SWAPPED",
    "TOO_LARGE",
    "bring",
    "invalidate",
    "open_change",
    "publish",
    "settle",
    "stage",
]

_ONE = const(1)

IDLE, EDITING, MARKING, MARKS_SWAPPED, SWAPPED, SETTLED = (const(phase) for phase in range(6))
_AFTER_MARKS = const(8)
EDITING_AFTER_MARKS = const(9)
"""Bit of the phase EDITING: the active set holds INVALID copies, so the other must be published or undone."""

FIRST_REASON = 16
(
    NO_SLOT,
    HVA_DIFFERS,
    NPAGES_DIFFER,
    READONLY_DIFFERS,
    OVERLAPS,
    ID_BAD,
    FLAGS_BAD,
    TOO_LARGE,
    GFN_WRAPS,
    HVA_UNALIGNED,
    HVA_WRAPS,
    OUT_OF_PHASE,
    EXISTS,
) = (const(reason) for reason in range(FIRST_REASON, FIRST_REASON + 13))

_READONLY = const(2)
_USER_FLAGS = const(3)
_FRAMES = const(1 << 52)
_LARGEST = const((1 << 64) - 1)
_PAGE_MASK = const(4095)


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
def _judge(
    memslots: Words, desk: Own, set_: U64, id_: U64, gfn: U64, npages: U64, hva: U64, flags: U64, ids: U64
) -> U64:
    """The kind of a change against a set, or the reason why it is refused. O(log n).

    ``ids``: ids below it may be used, all of them for a change of KVM's own. A slot may overlap where it itself was.
    """
    if id_ >= ids:
        return ID_BAD
    old = load_relaxed(memslots, load_relaxed(memslots, set_ + TABLE) + id_)
    desk[DETAIL] = old
    if npages == 0:
        return NO_SLOT if old == 0 else DELETE
    if flags & (_LARGEST - _USER_FLAGS) != 0:
        return FLAGS_BAD
    if npages > KVM_MEM_MAX_NR_PAGES and ids < load_relaxed(memslots, IDS):  # KVM's own slots may be larger
        return TOO_LARGE
    if gfn >= _FRAMES or gfn + npages >= _FRAMES:
        return GFN_WRAPS
    if hva & _PAGE_MASK != 0:
        return HVA_UNALIGNED
    if hva > _LARGEST - (npages << 12):
        return HVA_WRAPS
    kind = CREATE
    if old != 0:
        words = old << RECORD_SHIFT
        if load_relaxed(memslots, words + USERSPACE_ADDR) != hva:
            return HVA_DIFFERS
        if load_relaxed(memslots, words + NPAGES) != npages:
            return NPAGES_DIFFER
        was = load_relaxed(memslots, words + FLAGS)
        if (was ^ flags) & _READONLY != 0:
            return READONLY_DIFFERS
        if load_relaxed(memslots, words + BASE_GFN) == gfn:
            return NOTHING if was == flags else FLAGS_ONLY
        kind = MOVE
    near = last_before(memslots, set_, gfn + npages - _ONE)
    if near != 0 and near == old:  # what overlaps, if anything, is the slot before it
        base = load_relaxed(memslots, (old << RECORD_SHIFT) + BASE_GFN)
        near = last_before(memslots, set_, base - _ONE) if base > gfn else u64(0)
    if near != 0 and near != old:
        base = load_relaxed(memslots, (near << RECORD_SHIFT) + BASE_GFN)
        if base < gfn + npages and base + load_relaxed(memslots, (near << RECORD_SHIFT) + NPAGES) > gfn:
            desk[DETAIL] = near
            return OVERLAPS
    return kind


@compiled
def stage(
    memslots: Words, desk: Own, as_id: U64, id_: U64, gfn: U64, npages: U64, hva: U64, flags: U64, ids: U64
) -> U64:
    """Carry out one change on the inactive set, seeing what earlier ones did; returns its kind or a reason. O(log n).

    A refused change changes nothing. Source of the order of checks: ``kvm_set_memory_region()``.
    """
    phase = desk[PHASE]
    if phase == IDLE:
        _begin(memslots, desk, as_id, EDITING)
    elif phase & (_AFTER_MARKS - _ONE) != EDITING:
        return OUT_OF_PHASE
    kind = _judge(memslots, desk, desk[EDITED], id_, gfn, npages, hva, flags, ids)
    if kind < NOTHING:
        edit(memslots, desk, as_id, id_, gfn, npages, hva, flags, kind)
    elif phase == IDLE:
        desk[PHASE] = IDLE
    return kind


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
def open_change(
    memslots: Words,
    desk: Own,
    as_id: U64,
    id_: U64,
    gfn: U64,
    npages: U64,
    hva: U64,
    flags: U64,
    ids: U64,
    create: bool,
) -> U64:
    """Begin one whole change as KVM does it: stage a CREATE or FLAGS_ONLY; mark the slot of a DELETE or MOVE.

    Returns its kind or a reason; with ``create``, a slot that exists is refused. O(log n).
    """
    if desk[PHASE] != IDLE:
        return OUT_OF_PHASE
    _begin(memslots, desk, as_id, EDITING)
    kind = _judge(memslots, desk, desk[EDITED], id_, gfn, npages, hva, flags, ids)
    if create and CREATE < kind <= NOTHING:
        kind = EXISTS
    if DELETE <= kind <= MOVE:
        desk[PHASE] = MARKING
        mark(memslots, desk, id_)
    elif kind < NOTHING:
        edit(memslots, desk, as_id, id_, gfn, npages, hva, flags, kind)
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
    elif phase & (_AFTER_MARKS - _ONE) == EDITING:
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
    old = load_relaxed(memslots, active + GENERATION) & (KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS - _ONE)
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
        if phase != MARKING and phase & (_AFTER_MARKS - _ONE) != EDITING:
            return False
    elif phase != SETTLED:
        return False
    edited = desk[EDITED]
    stale = load_relaxed(memslots, edited + TABLE)
    right = load_relaxed(memslots, desk[OTHER] + TABLE)
    link = desk[TOUCHED]
    while link != 0:
        id_ = link - _ONE
        link = desk[CHAIN + id_] - _ONE
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
        id_ = link - _ONE
        link = desk[CHAIN + id_] - _ONE
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
