"""What a batch amounts to: the active set against the edited one, range by range of frames.

A batch is run entry by entry on the inactive set; only what differs in the end costs vCPUs anything. A split, a merge
or a change of ids that keeps each frame's host memory is no work at all; memory that goes or changes must be stalled.
Only frames that touched slots had or have are looked at. Idea: the debate of 2022 about atomic memslot updates on the
kvm list; this table is this project's answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..atomics import load_relaxed
from ..compiled import ONE, U64, Own, Words, compiled, const, own, u64, wrapping
from .changes import Action, Effect
from .edit import origin
from .layout import (
    ATTRIBUTES,
    BASE_GFN,
    CHAIN,
    EDITED,
    FLAGS,
    GUEST_MEMFD,
    GUEST_MEMFD_OFFSET,
    NPAGES,
    OTHER,
    RECORD_SHIFT,
    TABLE,
    TOUCHED,
    TOUCHED_COUNT,
    USERSPACE_ADDR,
)
from .lookup import CURSOR_WORDS, gfn_next, gfn_seek
from .slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_NR, KVM_MEMSLOT_NX

if TYPE_CHECKING:
    from .set import Memslots

__all__ = ["EFFECT_WORDS", "Action", "Effect", "EffectRoom", "compare_sets", "net_effect"]

EFFECT_WORDS = 5
"""Words of an effect as ``compare_sets`` writes it: start_gfn, end_gfn, action, old record, new record."""

_KEEP, _WRITES, _LIFT, _STALL, _FILL = (const(action) for action in range(1, 6))
_EFFECT_WORDS = const(EFFECT_WORDS)
_HIDDEN = const(KVM_MEMSLOT_NR | KVM_MEMSLOT_NX)
_RIGHTS = const(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEMSLOT_NR | KVM_MEMSLOT_NX)


@compiled
def _sift(pairs: Own, root: U64, count: U64) -> None:
    """Restore the heap of pairs (largest start first) below ``root``. O(log count)."""
    while root + root + ONE < count:
        child = root + root + ONE
        if child + ONE < count and pairs[child + child] < pairs[child + child + u64(2)]:
            child += ONE
        if pairs[root + root] >= pairs[child + child]:
            return
        _swap_pairs(pairs, root, child)
        root = child


@compiled
def _swap_pairs(pairs: Own, a: U64, b: U64) -> None:
    first = pairs[a + a]
    second = pairs[a + a + ONE]
    pairs[a + a] = pairs[b + b]
    pairs[a + a + ONE] = pairs[b + b + ONE]
    pairs[b + b] = first
    pairs[b + b + ONE] = second


@compiled
def _sort(pairs: Own, count: U64) -> None:
    """Sort pairs by their start, in place. O(count log count)."""
    root = count >> 1
    while root > 0:
        root -= ONE
        _sift(pairs, root, count)
    while count > 1:
        count -= ONE
        _swap_pairs(pairs, u64(0), count)
        _sift(pairs, u64(0), count)


@compiled
def _host(memslots: Words, record: U64, gfn: U64) -> U64:
    """Host address of a frame; the record holds it, or ends where it begins."""
    words = record << RECORD_SHIFT
    return wrapping(
        load_relaxed(memslots, words + USERSPACE_ADDR) + ((gfn - load_relaxed(memslots, words + BASE_GFN)) << 12)
    )


@compiled
def _rights(memslots: Words, record: U64) -> U64:
    return load_relaxed(memslots, (record << RECORD_SHIFT) + FLAGS) & _RIGHTS


@compiled
def _place_in_file(memslots: Words, record: U64, gfn: U64) -> U64:
    """Offset of a frame in the record's guest_memfd, in bytes; as ``_host``."""
    words = record << RECORD_SHIFT
    return wrapping(
        load_relaxed(memslots, words + GUEST_MEMFD_OFFSET) + ((gfn - load_relaxed(memslots, words + BASE_GFN)) << 12)
    )


@compiled
def _same_memory(memslots: Words, old: U64, new: U64, gfn: U64) -> bool:
    """Whether a frame is the same in both records: host memory, place in a guest_memfd, attributes."""
    was = old << RECORD_SHIFT
    now = new << RECORD_SHIFT
    if _host(memslots, old, gfn) != _host(memslots, new, gfn):
        return False
    if load_relaxed(memslots, was + ATTRIBUTES) != load_relaxed(memslots, now + ATTRIBUTES):
        return False
    file = load_relaxed(memslots, was + GUEST_MEMFD)
    if file != load_relaxed(memslots, now + GUEST_MEMFD):
        return False
    return file == 0 or _place_in_file(memslots, old, gfn) == _place_in_file(memslots, new, gfn)


@compiled
def _action(memslots: Words, old: U64, new: U64, gfn: U64) -> U64:
    """What a frame needs that ``old`` held (0: none) and ``new`` will hold."""
    if old == 0:
        return _FILL
    if new == 0 or not _same_memory(memslots, old, new, gfn):
        return _STALL
    before = _rights(memslots, old)
    after = _rights(memslots, new)
    if before == after:
        return _KEEP
    lost = after & (before ^ _RIGHTS)
    if lost & _HIDDEN != 0:
        return _STALL  # reads and fetches wait for nothing less
    return _WRITES if lost != 0 else _LIFT


@compiled
def _goes_on(memslots: Words, first: U64, record: U64, gfn: U64) -> bool:
    """Whether ``record`` at ``gfn`` goes on with the memory and the flags of ``first``, which begins before."""
    if first == record:
        return True
    if first == 0 or record == 0:
        return False
    return _same_memory(memslots, first, record, gfn) and _rights(memslots, first) == _rights(memslots, record)


@compiled
def _end_gfn(memslots: Words, record: U64) -> U64:
    words = record << RECORD_SHIFT
    return load_relaxed(memslots, words + BASE_GFN) + load_relaxed(memslots, words + NPAGES)


@compiled
def _note(memslots: Words, pairs: Own, count: U64, record: U64) -> U64:
    """Append the frames of a record (0: none); returns how many ranges there are."""
    if record == 0:
        return count
    pairs[count + count] = load_relaxed(memslots, (record << RECORD_SHIFT) + BASE_GFN)
    pairs[count + count + ONE] = _end_gfn(memslots, record)
    return count + ONE


@compiled
def _touched_ranges(memslots: Words, desk: Own, pairs: Own) -> U64:
    """Write the frames that touched slots had and have, sorted by start; returns how many ranges. O(k log k)."""
    old_table = load_relaxed(memslots, desk[OTHER] + TABLE)
    new_table = load_relaxed(memslots, desk[EDITED] + TABLE)
    count = u64(0)
    link = desk[TOUCHED]
    while link != 0:
        id_ = link - ONE
        link = desk[CHAIN + id_] - ONE
        record = origin(memslots, load_relaxed(memslots, old_table + id_))
        other = load_relaxed(memslots, new_table + id_)
        if record != other:
            count = _note(memslots, pairs, count, record)
            count = _note(memslots, pairs, count, other)
    _sort(pairs, count)
    return count


@compiled
def compare_sets(memslots: Words, desk: Own, pairs: Own, was: Own, now: Own, out: Own) -> U64:
    """Write the net effect of k touched slots to ``out``, ascending; returns how many. O(k log n).

    ``pairs``: 4 k words of room; ``was`` and ``now``: a cursor each; ``out``: 4 k + 1 times ``EFFECT_WORDS``.
    """
    ranges = _touched_ranges(memslots, desk, pairs)
    found = u64(0)
    at = u64(0)
    index = u64(0)
    while index < ranges:
        gfn = pairs[index + index]
        end = pairs[index + index + ONE]
        index += ONE
        while index < ranges and pairs[index + index] <= end:
            end = max(end, pairs[index + index + ONE])
            index += ONE
        gfn_seek(memslots, was, desk[OTHER], gfn, end)
        gfn_seek(memslots, now, desk[EDITED], gfn, end)
        old = gfn_next(memslots, was)
        new = gfn_next(memslots, now)
        while gfn < end:
            if old != 0 and _end_gfn(memslots, old) <= gfn:
                old = gfn_next(memslots, was)
            if new != 0 and _end_gfn(memslots, new) <= gfn:
                new = gfn_next(memslots, now)
            stop = end
            before = u64(0)
            after = u64(0)
            if old != 0:
                start = load_relaxed(memslots, (old << RECORD_SHIFT) + BASE_GFN)
                if start <= gfn:
                    before = origin(memslots, old)
                    start = _end_gfn(memslots, old)
                stop = min(stop, start)
            if new != 0:
                start = load_relaxed(memslots, (new << RECORD_SHIFT) + BASE_GFN)
                if start <= gfn:
                    after = new
                    start = _end_gfn(memslots, new)
                stop = min(stop, start)
            if before != 0 or after != 0:
                action = _action(memslots, before, after, gfn)
                if (
                    found > 0
                    and out[at + ONE] == gfn
                    and out[at + u64(2)] == action
                    and _goes_on(memslots, out[at + u64(3)], before, gfn)
                    and _goes_on(memslots, out[at + u64(4)], after, gfn)
                ):
                    out[at + ONE] = stop
                else:
                    at = found * _EFFECT_WORDS
                    out[at] = gfn
                    out[at + ONE] = stop
                    out[at + u64(2)] = action
                    out[at + u64(3)] = before
                    out[at + u64(4)] = after
                    found += ONE
            gfn = stop
    return found


_ACTIONS = {action.value: action for action in Action}


class EffectRoom:
    """The words that ``compare_sets`` works in, for up to ``touched`` slots; one a VM, used under ``slots_lock``."""

    def __init__(self, touched: int) -> None:
        self.touched = touched
        self.pairs, self.was, self.now = own(4 * touched + 2), own(CURSOR_WORDS), own(CURSOR_WORDS)
        self.out = own(EFFECT_WORDS * (4 * touched + 1))
        self.view = memoryview(self.out)  # type: ignore[arg-type]  # words of either form are a buffer


def net_effect(memslots: Memslots) -> list[Effect]:
    """The net effect of the update that is being edited, under ``slots_lock``. O(k log n) for k touched slots."""
    touched = int(memslots.desk[TOUCHED_COUNT])
    room = memslots.effect_room
    if room is None or room.touched < touched:
        room = memslots.effect_room = EffectRoom(max(16, 2 * touched))
    found = compare_sets(memslots.words, memslots.desk, room.pairs, room.was, room.now, room.out)
    flat = room.view[: EFFECT_WORDS * found].tolist()
    effects = []
    for at in range(0, len(flat), EFFECT_WORDS):
        start, end, action, old, new = flat[at : at + EFFECT_WORDS]
        old_slot = memslots.slot_of(old) if old else None
        new_slot = memslots.slot_of(new) if new else None
        effects.append(Effect(start, end, _ACTIONS[action], old_slot, new_slot))
    return effects
