"""One update of a VM's slots, in phases, for whoever puts work between them: engines and designs.

Source of the phases: ``kvm_set_memslot()`` and ``kvm_swap_active_memslots()``, Linux 6.18, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..compiled import Own, own
from ..errors import BatchError, MemslotError, UsageError
from .batch import Effect, net_effect
from .changes import KINDS, Change, ChangeKind
from .layout import PHASE
from .phases import (
    BATCH_WORDS,
    EDITING,
    EDITING_AFTER_MARKS,
    FIRST_REASON,
    IDLE,
    MARKING,
    MARKS_SWAPPED,
    SETTLED,
    SWAPPED,
    bring,
    invalidate,
    publish,
    publish_both,
    settle,
    stage_asked,
    stage_batch,
)
from .refusal import refusal

if TYPE_CHECKING:
    from .set import Memslots

__all__ = ["Update", "end_update"]

_MOMENT_NS = 50_000_000
_CHANGE = struct.Struct("<9Q")
_CHANGE_BYTES = 8 * int(BATCH_WORDS)


def end_update(memslots: Memslots, *, patient: bool = True) -> bool:
    """Bring the update on the desk to its end from whatever phase it is in: undo what is not published, else finish it.

    Not ``patient``, it waits for readers a moment only, and may return False: the next update does the rest first.
    """
    words, desk, srcu = memslots.words, memslots.desk, memslots.srcu
    while (phase := int(desk[PHASE])) != IDLE:
        if phase in (MARKING, EDITING):
            bring(words, desk, True)
        elif phase == EDITING_AFTER_MARKS:  # publish the clean set again: KVM's way back
            bring(words, desk, True)
            publish(words, desk)
        elif phase == SETTLED:
            bring(words, desk, False)
        else:
            if patient:
                srcu.synchronize()
            elif not srcu.synchronize_within(_MOMENT_NS):
                return False
            settle(words, desk)
    return True


class Update:
    """One update of one address space; holds the VM's ``slots_lock`` until ``mirror`` or ``abort``.

    As KVM does a delete: ``invalidate``, ``publish``, ``synchronize``, zap, ``stage``, ``publish``, ``synchronize``,
    ``mirror``. All other changes, and batches: ``stage`` …, ``publish``, ``synchronize``, ``mirror``. As a context
    manager it aborts what was not published, and finishes what was.

    >>> from guestmem.memslots import Change, Memslots
    >>> memslots = Memslots()
    >>> with memslots.update() as update:
    ...     update.stage(Change(slot=1, base_gfn=16, npages=4, userspace_addr=0x7F0000000000))
    ...     update.publish(), update.synchronize()
    ...     update.mirror()
    <ChangeKind.CREATE: 'create'>
    (True, 0)
    >>> memslots.find(17)
    Slot 1 [0x10000, 0x14000) 16 KiB -> 0x7f0000000000
    """

    def __init__(self, memslots: Memslots, as_id: int, desk: Own | None = None, beside: Sequence[Update] = ()) -> None:
        """Begin; the caller holds ``slots_lock``, which the last of the updates ``beside`` gives back at its end."""
        self.memslots, self.as_id = memslots, as_id
        self.desk = memslots.desk if desk is None else desk
        """What the update works on; in use while one of its methods runs."""
        self._beside = beside
        self.ended = False
        self._settled = False

    @property
    def happened(self) -> bool:
        """Whether what was staged is published, so that it cannot be undone."""
        return self._settled or self.phase in (SWAPPED, SETTLED)

    @property
    def phase(self) -> int:
        """Phase by its number in ``phases``; ``IDLE`` also before the first change."""
        return int(self.desk[PHASE])

    def stage(self, change: Change, *, internal: bool = False) -> ChangeKind:
        """Carry out ``change`` on the inactive set, which has all changes staged before. O(log n).

        Raises MemslotError with the kernel's errno; then this change did nothing, the ones before stay staged.
        """
        self._begun()
        memslots = self.memslots
        if change.as_id != self.as_id:
            raise self._out_of_words(change)
        memslots.ask(change, memslots.ids if internal else memslots.max_slots)
        status = stage_asked(memslots.words, memslots.desk)
        if status >= FIRST_REASON:
            raise refusal(memslots, status, change, memslots.ids if internal else memslots.max_slots)
        return KINDS[status]

    def stage_all(self, changes: Iterable[Change], *, internal: bool = False) -> list[ChangeKind]:
        """Stage changes in order. Raises BatchError naming the first entry refused; then the whole update is undone."""
        self._begun()
        changes = tuple(changes)
        memslots = self.memslots
        fit = next((entry for entry, each in enumerate(changes) if each.as_id != self.as_id), len(changes))
        batch = memslots.batch_room
        if batch is None or len(batch) < int(BATCH_WORDS) * fit:
            batch = memslots.batch_room = own(int(BATCH_WORDS) * max(16, 2 * fit))
        for entry in range(fit):
            try:
                _CHANGE.pack_into(batch, entry * _CHANGE_BYTES, *changes[entry])  # type: ignore[arg-type] # a buffer
            except struct.error:  # a field that no word holds
                fit = entry
                break
        ids = memslots.ids if internal else memslots.max_slots
        done = int(stage_batch(memslots.words, memslots.desk, batch, fit, ids))
        if done == len(changes):
            return [KINDS[status] for status in memoryview(batch)[9 : 10 * done : 10]]  # type: ignore[arg-type]
        change = changes[done]
        if done < fit:
            error = refusal(memslots, int(batch[int(BATCH_WORDS) * done + 9]), change, ids)
        else:
            error = self._out_of_words(change)
        self.abort()
        raise BatchError(error.errno or errno.EINVAL, str(error).partition(": ")[2], entry=done) from None

    def invalidate(self, slot_id: int) -> None:
        """Put KVM's INVALID mark on a slot (a copy of it in the inactive set), before anything is staged. O(log n)."""
        self._begun()
        memslots = self.memslots
        change = Change(slot_id, as_id=self.as_id)
        if slot_id >> 64:
            raise self._out_of_words(change)
        status = invalidate(memslots.words, memslots.desk, self.as_id, slot_id)
        if status >= FIRST_REASON:
            raise refusal(memslots, status, change, memslots.ids)

    def net_effect(self) -> list[Effect]:
        """What publishing would change for vCPUs, by range of frames, ascending. O(k log n) for k staged slots."""
        self._begun()
        if self.phase not in (EDITING, EDITING_AFTER_MARKS):
            return []
        return net_effect(self.memslots)

    def publish(self) -> bool:
        """The swap: vCPUs see the edited set from here on. False if there is nothing to publish. O(1).

        The generation gets bit 63 until ``synchronize``.
        """
        self._begun()
        if self.phase in (MARKS_SWAPPED, SWAPPED, SETTLED):
            raise UsageError("publish: what was published before was not synchronized and mirrored")
        return bool(publish(self.memslots.words, self.memslots.desk))

    def publish_with(self, last: Update) -> None:
        """Publish this and ``last``, another address space's, in one call that nothing interrupts: this one first.

        A reader that sees the set of ``last`` sees this one's, too; in between it may see this one's alone.
        """
        for each in (self, last):
            each.at_desk()
            if each.phase in (MARKS_SWAPPED, SWAPPED, SETTLED):
                raise UsageError("publish: what was published before was not synchronized and mirrored")
        publish_both(self.memslots.words, self.desk, last.desk)

    def synchronize(self, *beside: Update) -> int:
        """Wait until no reader is in the old set, then write the final generation; returns how often it slept.

        ``beside``: updates that were published with this one, and need no grace period of their own.
        """
        self._begun()
        waiting = [each for each in (self, *beside) if each.phase in (MARKS_SWAPPED, SWAPPED)]
        if not waiting:
            return 0
        slept = self.memslots.srcu.synchronize()
        for each in waiting:
            settle(self.memslots.words, each.desk)
        return slept

    def mirror(self) -> None:
        """Bring the set that was active before up to date, free what is in neither set, end the update. O(k log n)."""
        self._begun()
        if self.phase not in (SETTLED, IDLE):
            raise UsageError("mirror: the update has changes that were not published and synchronized")
        self._settled = self.phase == SETTLED
        bring(self.memslots.words, self.memslots.desk, False)
        self._end()

    def abort(self, *, patient: bool = True) -> None:
        """Undo all that was staged; INVALID marks that were published are taken back by one more swap.

        What ``publish`` made the new set cannot be undone: then this finishes the update. Not ``patient`` (after
        Ctrl-C), what has to wait for readers longer than a moment is left to the next update.
        """
        if not self.ended:
            try:
                self._begun()
                try:
                    end_update(self.memslots, patient=patient)
                except MemoryError:  # each phase is one call, so this goes on where that stopped
                    end_update(self.memslots, patient=patient)
            finally:  # left while it waits for readers, the next update does the rest first
                self._end()

    def __enter__(self) -> Update:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.abort(patient=error is None or isinstance(error, Exception))

    def at_desk(self) -> None:
        """From here on this update's desk is the one in use."""
        self._begun()

    def _begun(self) -> None:
        if self.ended:
            raise UsageError("update: it has ended; begin another with Memslots.update()")
        if self.memslots.desk is not self.desk:
            self.memslots.turn_to(self.desk)

    def _end(self) -> None:
        for each in self._beside:
            if each is not self and not each.ended:
                self.ended = True
                return
        for each in self._beside:
            if each.phase != IDLE:  # left while it waited for readers: who comes next looks at the desk in use
                self.memslots.turn_to(each.desk)
        release = self.memslots.slots_lock.release
        self.ended = True  # from here on nothing fails
        release()

    def _out_of_words(self, change: Change) -> MemslotError:
        if change.as_id != self.as_id:
            return MemslotError(
                errno.EINVAL, f"slot {change.slot}: as_id {change.as_id} is not the update's ({self.as_id})"
            )
        return refusal(self.memslots, 0, change, 0)
