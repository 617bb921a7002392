"""An update of the software engine, in phases: slots on one side, what running vCPUs must do about it on the other."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ...clock import stopwatch as _clock
from ...errors import BatchError, MemslotError
from ...memslots import KVM_MEM_LOG_DIRTY_PAGES, Action, Change, ChangeKind, Effect, Slot
from ...memslots.no_memory import no_memory_for
from ...memslots.phases import EDITING, EDITING_AFTER_MARKS, IDLE, MARKS_SWAPPED, SETTLED, SWAPPED
from ...memslots.slot import KVM_MEM_GUEST_MEMFD
from ...memslots.update import Update as SlotUpdate
from ..listeners import Attached
from .above import above_add, above_clear
from .files import NO_CHANGE, Rebinding, refused_at
from .layout import ABOVE_MAX, FLUX_MAX, STALLS_ALL, STALLS_WRITES

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["ENTRIES_MAX", "SoftUpdate", "covering", "stalled"]

ENTRIES_MAX = 4096
"""Changes of one batch."""
_STALLS = {Action.STALL: int(STALLS_ALL), Action.WRITES: int(STALLS_WRITES)}
_WHOLE = (int(IDLE), int(SETTLED))
_PUBLISHED = (int(MARKS_SWAPPED), int(SWAPPED))
_UNPUBLISHED = (int(EDITING), int(EDITING_AFTER_MARKS))


def covering(ranges: Sequence[tuple[int, int, int]], most: int) -> list[tuple[int, int, int]]:
    """At most ``most`` ranges (first frame, end, what waits) that cover all of ``ranges``. O(n log n).

    What lies between two that become one waits as well: a vCPU that faults there faults again afterwards, and finds
    what it would have found. The smallest gaps are closed.

    >>> covering([(0, 1, 1), (8, 9, 2), (3, 4, 1)], 2)
    [(0, 4, 1), (8, 9, 2)]
    """
    if len(ranges) <= most:
        return list(ranges)
    ordered = sorted(ranges)
    by_gap = sorted(range(1, len(ordered)), key=lambda place: ordered[place][0] - ordered[place - 1][1])
    cuts = [0, *sorted(by_gap[len(ordered) - most :]), len(ordered)]
    parts = [ordered[start:end] for start, end in pairwise(cuts)]
    return [(part[0][0], max(end for _, end, _ in part), max(kind for _, _, kind in part)) for part in parts]


_DENIABLE = frozenset({2, 4, 6, 7})
"""NR, NW and NX together: none is written or fetched that cannot be read, as posted."""


def stalled(effects: Sequence[Effect]) -> list[tuple[int, int, int]]:
    """Of effects, the ranges that wait: first frame, end, STALLS_ALL for lost memory, STALLS_WRITES for lost rights."""
    return [
        (start, end, _STALLS[action])
        for start, end, action, _, _ in effects
        if action is Action.STALL or action is Action.WRITES
    ]


class SoftUpdate:
    """An update of a SoftEngine in phases; see ``protocol.Update``."""

    def __init__(self, engine: SoftEngine, slots: SlotUpdate, as_id: int = 0) -> None:
        self._engine, self._slots = engine, slots
        self._is_ready = False
        self._relogs = False
        self._in_flux: list[tuple[int, int, int]] = []
        """Ranges that wait: first frame, end, STALLS_ALL or STALLS_WRITES."""
        self._as_id = as_id
        self._gone: list[tuple[int, int]] = []
        """Frames of slots that went INVALID and have not been zapped since."""
        self._protected: list[tuple[int, int]] = []
        """Frames of slots whose flags changed, and have not been write-protected since."""
        self._staged: list[tuple[Change, ChangeKind]] = []
        """Changes that are not published yet."""
        self._above, self._settled = 0, False
        """Entries above slots; whether what was published has been settled."""
        self._files = engine.files
        self._rebinding = Rebinding(engine.files)
        """What the staged changes do to guest_memfds."""
        self._waiting: list[Attached] = []
        """Listeners whose accesses wait, and of what they are told."""
        self._told: list[Effect] = []
        self._unlogged: list[Slot] = []
        """Slots that only ended logging, and whose large leaves may come back once no fault thinks otherwise."""

    def stage(self, change: Change) -> ChangeKind:
        """Carry out one change on the inactive set."""
        begun = _clock()
        self._note_flags([change])
        try:
            self._bind([change])
        except BatchError as error:
            raise MemslotError(error.errno or errno.EINVAL, str(error).partition(": ")[2].partition(": ")[2]) from None
        kind = self._slots.stage(change)
        self._staged.append((change, kind))
        self._is_ready = False
        self._engine.counts.edit_ns += _clock() - begun
        return kind

    def stage_all(self, changes: Sequence[Change]) -> None:
        """Carry out changes in order on the inactive set; BatchError names the one refused."""
        if len(changes) > ENTRIES_MAX:
            raise MemslotError(errno.E2BIG, f"batch: {len(changes)} entries; {ENTRIES_MAX} are allowed")
        begun = _clock()
        try:
            self._bind(changes)
            self.stage_slots(changes)
        except BatchError:
            self._engine.wake_retries()  # INVALID marks that were published are taken back by now
            raise
        self._engine.counts.edit_ns += _clock() - begun

    def stage_slots(self, changes: Sequence[Change]) -> None:
        """As ``stage_all``, of the slots alone."""
        self._note_flags(changes)
        self._staged += zip(changes, self._slots.stage_all(changes), strict=True)
        self._is_ready = False

    def _bind(self, changes: Sequence[Change]) -> None:
        """Work out what changes do to guest_memfds; BatchError, with nothing staged, for one that cannot be bound.

        An entry that its slot's checks refuse first has their error: they are asked, with one more that fails.
        """
        if not len(self._files) and not any(change.flags & KVM_MEM_GUEST_MEMFD for change in changes):
            return
        rebinding = self._rebinding.copy()
        for entry, change in enumerate(changes):
            try:
                rebinding.add(change)
            except MemoryError:
                raise no_memory_for(changes, entry, "what it binds") from None
            except MemslotError as error:
                try:
                    self._slots.stage_all([*changes[: entry + 1], NO_CHANGE._replace(as_id=self._as_id)])
                except BatchError as first:
                    if first.entry <= entry:
                        raise
                raise refused_at(entry, error) from None
        self._rebinding = rebinding

    def invalidate(self, slot: int) -> None:
        """Mark a slot INVALID on the inactive set."""
        begun = _clock()
        if (goes := self._slots.memslots.by_id(slot, self._as_id)) is not None:
            self._gone.append((goes.base_gfn, goes.end_gfn))
        self._slots.invalidate(slot)
        self._engine.counts.edit_ns += _clock() - begun

    def net_effect(self) -> list[Effect]:
        """What the staged changes mean for running vCPUs."""
        begun = _clock()
        effects = self._slots.net_effect()
        self._engine.counts.edit_ns += _clock() - begun
        return effects

    def swap(self) -> None:
        """KVM's swap: publish, wait for readers, bring the other set up to date, kick all vCPUs."""
        self.publish()
        self.settle()
        self._engine.swapped()

    def flush(self) -> None:
        """Zap what went INVALID, protect what changed flags, and wait until no vCPU can use an old translation."""
        gone, self._gone = self._gone, []
        protected, self._protected = self._protected, []
        if gone or protected or not self._relogs:
            self._engine.flush_shadow(self._as_id, gone, protected)
        self._resize(protected)

    def _note_flags(self, changes: Sequence[Change]) -> None:
        """Remember the slots that these change the flags of: who ends logging loses no right, the others may."""
        for change in changes:
            if change.deletes:
                continue
            slot = self._slots.memslots.by_id(change.slot, self._as_id)
            if slot is None or change.flags == slot.flags:
                continue
            self._relogs = True
            only_logging = change.as_slot() == slot._replace(flags=change.flags)
            if only_logging and slot.flags & ~change.flags == KVM_MEM_LOG_DIRTY_PAGES:
                self._unlogged.append(change.as_slot())
            elif not (only_logging and self._engine.dirty.initially_set):
                self._protected.append((slot.base_gfn, slot.end_gfn))

    def _resize(self, logged: Sequence[tuple[int, int]]) -> None:
        """Split what logs now, and join what does no longer, as the engine was told to."""
        unlogged, self._unlogged = self._unlogged, []
        if not (unlogged or logged):
            return
        begun = _clock()
        for start, end in logged:
            self._engine.dirty.enable(self._as_id, start, end)
        for slot in unlogged:
            self._engine.dirty.disable(slot)
        self._engine.counts.acks_ns += _clock() - begun

    def stall(self, effects: Sequence[Effect], *, wait: bool = True) -> None:
        """Put the ranges that lose memory or rights in flux, zap them, and wait for acknowledgements.

        Called again, it adds to what is in flux. Of more ranges than FLUX holds, near ones wait together with the
        frames between them (``covering``); zapped and protected are the ranges themselves.
        """
        ranges = stalled(effects)
        self.stall_listeners(effects)
        if not ranges:
            return
        self.ready()
        marked = covering(self._in_flux + ranges, FLUX_MAX)
        self._in_flux += ranges  # before they are: an exception in between must not leave them so
        self._engine.mark(marked)
        self._engine.counts.ranges_in_flux += len(ranges)
        with self._engine.zapping():
            self.zap(ranges, wait=wait)

    def zap(self, ranges: Sequence[tuple[int, int, int]], *, wait: bool) -> None:
        """Zap, or protect, ranges that are in flux in the stage-2 table of this address space."""
        if ranges:
            self._engine.counts.zaps += self._engine.stage2.take(self._as_id, ranges, wait=wait)

    def ready(self) -> None:
        """All that publishing takes and that can fail: logs of slots, bindings of files. Before the first stall."""
        if self._is_ready:
            return
        if self._staged:
            self._engine.dirty.attach(self._staged)
            if self._rebinding:
                self._rebinding.publish()
        self._is_ready = True

    def publish(self) -> None:
        """The instant: the staged set becomes the active one."""
        begun = _clock()
        self.ready()
        self._engine.counts.swaps += self._slots.publish()
        self.published()
        self.tell_listeners()
        self._engine.counts.edit_ns += _clock() - begun

    def published(self) -> None:
        """What was staged is."""
        self._staged, self._is_ready = [], False
        self._engine.dirty.attached()

    @property
    def happened(self) -> bool:
        """Whether what was staged is what vCPUs find: from here on it cannot be undone."""
        return self._slots.happened

    def left(self, *, patient: bool) -> None:
        """The update was left before its end: what was published is bound, once nobody reads the old slots."""
        if self._slots.phase in _UNPUBLISHED:
            self._engine.dirty.detach()
            self._rebinding.abandon()
        elif self._rebinding.published:
            if patient:
                self._engine.srcu.synchronize()
            self._rebinding.end()

    def overlay(self, gfn: int, userspace_addr: int) -> None:
        """Show the page at ``userspace_addr`` at frame ``gfn``, whatever slots say; until ``settle``, or the end."""
        self._put_above(gfn, gfn + 1, userspace_addr)

    def deny(self, start_gfn: int, end_gfn: int, rights: int) -> None:
        """Accesses that need one of ``rights`` exit, whatever the slots say; until ``settle``, or the end."""
        if rights not in _DENIABLE:
            raise MemslotError(errno.EINVAL, f"rights: {rights:#x} is not NW 2, NX 4, both, or all with NR 1")
        self._put_above(start_gfn, end_gfn, rights)

    def _put_above(self, start_gfn: int, end_gfn: int, what: int) -> None:
        if self._above == ABOVE_MAX:
            raise MemslotError(errno.E2BIG, f"above slots: {ABOVE_MAX} entries are allowed")
        with self._engine.host_invalidation(start_gfn, end_gfn, self._as_id):
            self._above += 1
            above_add(self._engine.words, start_gfn, end_gfn, what, self._as_id)

    def uncover(self) -> None:
        """Nothing stands above slots any more. What was published says the same, else it is zapped."""
        if not self._above:
            return
        above_clear(self._engine.words)
        if not self._settled:
            self._engine.flush(wait=True)
        self._above = 0

    def stall_listeners(self, effects: Sequence[Effect]) -> None:
        """Other maps than the vCPUs': one that refuses has changed nothing, accesses by the others wait."""
        if not self._engine.listeners:
            return
        self._told = [effect for effect in effects if effect.action is not Action.KEEP]
        if not self._told:
            return
        self.ready()
        waiting = [each for each in self._engine.listeners if each.listener.waits]
        for each in waiting:
            each.listener.prepare(self._told)
        for each in waiting:
            each.stall(self._told)
            self._waiting.append(each)

    def tell_listeners(self) -> None:
        """Their maps say what the slots say."""
        for each in self._waiting:
            each.commit(self._told)

    def release(self) -> None:
        """Nothing is in flux any more; stalled vCPUs fault again, devices go on."""
        while self._waiting:
            self._waiting.pop().resume()
        if self._in_flux:
            self._engine.release()
            self._in_flux = []

    def settle(self) -> None:
        """Wait for readers of the old set and bring it up to date."""
        begun = _clock()
        counts = self._engine.counts
        counts.srcu_waits += self._slots.phase in _PUBLISHED
        counts.slept += self._slots.synchronize()
        grace = _clock()
        if self._slots.phase in _WHOLE:  # else INVALID marks are what was published, and the update goes on
            self._settled = True
            self.uncover()
            self._rebinding.end()
            self._slots.mirror()
            self._engine.dirty.settled()
        counts.grace_ns += grace - begun
        counts.edit_ns += _clock() - grace
