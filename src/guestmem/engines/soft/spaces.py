"""An update of both address spaces (SMM's and the other) with one instant.

Each space has its own two sets, so there are two stores, and between them a vCPU could see the new memory of the space
that is published first, and then, in the other space or by another vCPU, what is still old. So in the first space all
that differs waits, also memory that comes and rights that are given, and what a fault found there before it was put in
flux is looked for again (``user_mem_abort``); it is seen when FLUX is released, after the second store. That store is
the instant.

What it costs: ranges of the first space where memory comes or rights are given wait and are zapped, which alone they
would not. The space that has more of those is published last. Frames in flux wait in both spaces.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...clock import stopwatch as _clock
from ...errors import BatchError, MemslotError
from ...memslots import Action, Change, ChangeKind, Effect
from ...memslots.no_memory import no_memory_for
from ...memslots.phases import IDLE
from ...memslots.slot import KVM_MEM_GUEST_MEMFD
from ...memslots.update import Update as SlotUpdate
from .files import Rebinding, refused_at
from .layout import FLUX_MAX, STALLS_ALL, STALLS_WRITES
from .update import ENTRIES_MAX, SoftUpdate, covering, stalled

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["SpacesUpdate"]

_GIVES = {Action.FILL: int(STALLS_ALL), Action.LIFT: int(STALLS_WRITES)}
"""What waits only in a space that is published before the instant."""


def _space(effect: Effect) -> int:
    slot = effect.old or effect.new
    assert slot is not None
    return slot.as_id


class SpacesUpdate(SoftUpdate):
    """An update of two address spaces in phases: what ``atomic`` does with one, and no more."""

    def __init__(self, engine: SoftEngine, slots: Sequence[SlotUpdate]) -> None:
        super().__init__(engine, slots[0], slots[0].as_id)
        self._all = list(slots)
        self._parts = [SoftUpdate(engine, each, each.as_id) for each in slots]
        """In the order in which they are published."""
        self._entries: dict[int, list[int]] = {}
        """By space, where its entries stand among all."""

    def stage(self, change: Change) -> ChangeKind:
        """Not one by one."""
        raise MemslotError(errno.EINVAL, f"slot {change.slot}: an update of two address spaces takes all at once")

    def stage_all(self, changes: Sequence[Change]) -> None:
        """Carry out changes in order, each on the inactive set of its space; BatchError names the first refused."""
        if len(changes) > ENTRIES_MAX:
            raise MemslotError(errno.E2BIG, f"batch: {len(changes)} entries; {ENTRIES_MAX} are allowed")
        begun = _clock()
        refused = self._bind_all(changes)
        spaces = {part.as_id for part in self._all}
        for entry, change in enumerate(changes):
            if change.as_id not in spaces:
                there = self._engine.memslots.address_spaces
                why = f"slot {change.slot}: as_id {change.as_id} is not below {there}"
                refused.append(BatchError(errno.EINVAL, why, entry=entry))
        for part, slots in zip(self._parts, self._all, strict=True):
            mine = self._entries[slots.as_id] = [
                entry for entry, change in enumerate(changes) if change.as_id == slots.as_id
            ]
            try:
                part.stage_slots([changes[entry] for entry in mine])
            except BatchError as error:
                refused.append(self._of_all(error, slots.as_id))
        if refused:  # of one entry, its slot's checks come before its file's
            raise min(reversed(refused), key=lambda error: error.entry) from None
        self._engine.counts.edit_ns += _clock() - begun

    def _of_all(self, error: BatchError, as_id: int) -> BatchError:
        """An error of one space's entries, by the place that the entry has among all."""
        why = str(error).partition(": ")[2].partition(": ")[2]
        return BatchError(error.errno or errno.EINVAL, why, entry=self._entries[as_id][error.entry])

    def _bind_all(self, changes: Sequence[Change]) -> list[BatchError]:
        """What the changes do to guest_memfds, in order over both spaces; the error of one that cannot be bound."""
        if not len(self._engine.files) and not any(change.flags & KVM_MEM_GUEST_MEMFD for change in changes):
            return []
        rebinding = Rebinding(self._engine.files)
        for entry, change in enumerate(changes):
            try:
                rebinding.add(change)
            except MemoryError:
                raise no_memory_for(changes, entry, "what it binds") from None
            except MemslotError as error:
                return [refused_at(entry, error)]
        self._rebinding = rebinding
        return []

    def net_effect(self) -> list[Effect]:
        """What the staged changes mean for running vCPUs, space by space."""
        return [effect for part in self._parts for effect in part.net_effect()]

    def stall(self, effects: Sequence[Effect], *, wait: bool = True) -> None:
        """Put in flux, in both spaces, what loses memory or rights; in the first, also what is given."""
        self._order(effects)
        last = self._all[-1].as_id
        ranges = {
            slots.as_id: stalled([each for each in effects if _space(each) == slots.as_id]) for slots in self._all
        }
        for effect in effects:
            if effect.action in _GIVES and _space(effect) != last:
                ranges[_space(effect)].append((effect.start_gfn, effect.end_gfn, _GIVES[effect.action]))
        self.stall_listeners(effects)
        every = [each for of_space in ranges.values() for each in of_space]
        if not every:
            return
        self.ready()
        marked = covering(self._in_flux + every, FLUX_MAX)
        self._in_flux += every
        self._engine.mark(marked)
        self._engine.counts.ranges_in_flux += len(every)
        with self._engine.zapping():
            for part, slots in zip(self._parts, self._all, strict=True):
                part.zap(ranges[slots.as_id], wait=wait)

    def _order(self, effects: Sequence[Effect]) -> None:
        """Last, the space to which more is given: there, that need not wait."""
        given = [_space(effect) for effect in effects if effect.action in _GIVES]
        both = sorted(zip(self._all, self._parts, strict=True), key=lambda each: given.count(each[0].as_id))
        self._all, self._parts = [slots for slots, _ in both], [part for _, part in both]

    def ready(self) -> None:
        """All that publishing takes and that can fail."""
        if self._is_ready:
            return
        for part, slots in zip(self._parts, self._all, strict=True):
            slots.at_desk()
            try:
                part.ready()
            except BatchError as error:
                raise self._of_all(error, slots.as_id) from None
        if self._rebinding:
            self._rebinding.publish()
        self._is_ready = True

    def publish(self) -> None:
        """Both stores; the second is the instant."""
        begun = _clock()
        self.ready()
        first, last = self._all
        first.publish_with(last)
        self._engine.counts.swaps += 2
        for part in self._parts:
            part.published()
        self._is_ready = False
        self.tell_listeners()
        self._engine.counts.edit_ns += _clock() - begun

    def settle(self) -> None:
        """Wait for readers of the old sets and bring them up to date."""
        begun, counts = _clock(), self._engine.counts
        first, last = self._all
        counts.srcu_waits += 1
        counts.slept += first.synchronize(last)
        grace = _clock()
        self._rebinding.end()
        for slots in self._all:
            slots.mirror()
        self._engine.dirty.settled()
        counts.grace_ns += grace - begun
        counts.edit_ns += _clock() - grace

    @property
    def happened(self) -> bool:
        """As of one space; both are published, or neither."""
        return any(slots.happened for slots in self._all)

    def left(self, *, patient: bool) -> None:
        """As of one space; both are published, or neither."""
        self._slots = next((slots for slots in self._all if slots.phase != IDLE), self._slots)
        super().left(patient=patient)
