"""QEMU's own trace, as its ``log`` and ``ftrace`` backends print it (``-trace kvm_set_user_memory``).

Events: ``kvm_set_user_memory``, ``kvm_clear_dirty_log`` (``accel/kvm/trace-events``) and ``global_dirty_changed``
(``system/trace-events``). Up to 2022 the slot number carried the address space in its upper half; then came
``AddrSpace#``, and since 2024 the guest_memfd fields before ``ret``; trees for SNP and TDX had ``restricted_fd`` after
it. A line is printed when the call has returned. Before the event stands nothing, or ``THREAD@SECONDS:``, or (QEMU 10)
an ISO 8601 time, or what ftrace or a system log puts there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from . import ftrace
from .timeline import DirtyLogClear, GlobalDirtyChange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .recording import Recording

__all__ = ["QemuReader"]

EVENT = re.compile(r"(?<![\w=/.,-])(kvm_set_user_memory|kvm_clear_dirty_log|global_dirty_changed)(?![\w=/.-])")
FIELDS = (
    r"kvm_set_user_memory (?:AddrSpace#(\d{1,10}) )?Slot#(\d{1,10}) flags=0x([0-9a-f]+) gpa=0x([0-9a-f]+) "
    r"size=0x([0-9a-f]+) ua=0x([0-9a-f]+)(?: guest_memfd=-?\d+ guest_memfd_offset=0x[0-9a-f]+)? ret=(-?\d{1,10})"
    r"(?: restricted_fd=-?\d+ restricted_offset=0x[0-9a-f]+)?\s*$"
)
PLAIN_LINE = re.compile(r"(?:(\d{1,20})@(\d{1,20}\.\d+):)?" + FIELDS)
"""A change as QEMU's log backend has printed it for years: the one line that has to be read fast."""
SET_USER_MEMORY = re.compile(FIELDS)
CLEAR_DIRTY_LOG = re.compile(r"kvm_clear_dirty_log slot#(\d{1,10}) start 0x([0-9a-f]+) size 0x([0-9a-f]+)\s*$")
GLOBAL_DIRTY = re.compile(r"global_dirty_changed bitmask 0x([0-9a-f]+)\s*$")
THREAD_AND_TIME = re.compile(r"(?:^|\s)(\d{1,20})@(\d{1,20}\.\d+):\s*$")
ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?")


class QemuReader:
    """Reads QEMU's trace lines; see the module."""

    name = "qemu"
    events = "QEMU's kvm_set_user_memory, kvm_clear_dirty_log or global_dirty_changed (-trace)"

    __slots__ = ("_recording",)

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is one of QEMU's events."""
        if not self._recording.wants_changes:
            return False
        match = PLAIN_LINE.match(text)
        if match is None:
            return self._other_line(number, text)
        thread, time, *fields = match.groups()
        stamp = None if time is None else float(time)
        self._change(number, text, fields, None if thread is None else int(thread), stamp)
        return True

    def finish(self) -> None:
        """Nothing is left open."""

    def _change(self, number: int, text: str, fields: Sequence[str], thread: int | None, stamp: float | None) -> None:
        """Hand over a kvm_set_user_memory."""
        as_id, slot, flags, gpa, size, hva, ret = fields
        key = int(slot)
        if as_id is not None:
            if key > 0xFFFF or int(as_id) > 0xFFFF:
                self._recording.bad_line("AddrSpace# and Slot# have 16 bits each", number, text)
            key |= int(as_id) << 16
        if self._recording.format != self.name:
            self._recording.claim(self.name, number, text)
        self._recording.replay.change(
            number,
            text,
            slot=key,
            flags=int(flags, 16),
            gpa=int(gpa, 16),
            size=int(size, 16),
            hva=int(hva, 16),
            ret=int(ret),
            time=stamp,
            thread=thread,
            began=None,
            ended=stamp,
            hides_delete=True,
        )

    def _other_line(self, number: int, text: str) -> bool:
        """Take a line that is no plain change."""
        event = EVENT.search(text)
        if event is None:
            return False
        prefix, rest = text[: event.start()], text[event.start() :]
        if _quotes(prefix):
            return False
        thread, stamp = _thread_and_time(prefix)
        if match := SET_USER_MEMORY.match(rest):
            self._change(number, text, match.groups(), thread, stamp)
        elif match := CLEAR_DIRTY_LOG.match(rest):
            slot, start, npages = int(match[1]), int(match[2], 16), int(match[3], 16)
            self._recording.claim(self.name, number, text)
            self._recording.dirty_log_clears.append(
                DirtyLogClear(slot >> 16, slot & 0xFFFF, start, npages, number, stamp, thread)
            )
        elif match := GLOBAL_DIRTY.match(rest):
            self._recording.claim(self.name, number, text)
            self._recording.global_dirty_changes.append(GlobalDirtyChange(int(match[1], 16), number, stamp, thread))
        else:
            self._recording.bad_line(f"{event[1]}: its fields cannot be read", number, text)
        return True


def _thread_and_time(prefix: str) -> tuple[int | None, float | None]:
    """The thread and the time that stand before an event; None for what does not."""
    if match := THREAD_AND_TIME.search(prefix):
        return int(match[1]), float(match[2])
    if match := ftrace.PREFIX.match(prefix):
        return int(match["thread"]), float(match["time"])
    if match := ISO_TIME.search(prefix):
        stamp = datetime.fromisoformat(match[0].replace(",", "."))
        return None, (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    return None, None


def _quotes(prefix: str) -> bool:
    """Whether what follows ``prefix`` is no event: a string that strace shows, or a command line."""
    return '"' in prefix or "-trace" in prefix or "trace:" in prefix
