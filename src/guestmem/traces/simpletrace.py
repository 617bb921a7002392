"""QEMU's binary trace as its ``scripts/simpletrace.py`` prints it.

``EVENT DELTA pid=PROCESS name=value …``: the delta is microseconds since the event before, of whatever kind, so all
lines are added up; values are hexadecimal, and those below 0 stand as two's complement. A process is told, no thread.
``Dropped_Event`` says that the trace buffer was full.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .lines import line_of
from .qemu import KEY_VALUE
from .qemu_events import FIELDS_BY_NAME, QemuEvents
from .qemu_prefix import Prefix
from .requests import integer

if TYPE_CHECKING:
    from .recording import Other, Recording, Rows

__all__ = ["SimpletraceReader"]

LINE = re.compile(r"([A-Za-z_]\w*) (-?\d{1,15}\.\d{3})(?: pid=(\d{1,10}))?((?: \w+=\S.*)?)\s*$")
ROW = re.compile(r"(?:([A-Za-z_]\w{0,60}) (-?\d{1,15}\.\d{3})(?: pid=(\d{1,10}))?((?: \w+=[^\s].{0,2000})?)|(.*))\n")


class SimpletraceReader:
    """Reads simpletrace.py's lines; see the module."""

    name = "qemu"
    events = "the same events as simpletrace.py prints them"

    pattern = ROW

    __slots__ = ("_events", "_nanoseconds", "_recording")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._events = QemuEvents(recording)
        self._nanoseconds = 0

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is one of QEMU's events."""
        match = LINE.match(text)
        if match is None:
            return False
        return self._event(number, text, *match.groups())

    @property
    def is_curious(self) -> bool:
        """All lines tell how time went on."""
        return self._nanoseconds > 0

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """Take a block of lines as ROW found them."""
        texts: list[str] = []
        skipped = 0
        for at, (event, delta, process, rest, text) in enumerate(rows, number):
            if not event:
                other(at, line_of(text))
            elif event in FIELDS_BY_NAME or event.startswith("Dropped"):
                texts = texts or block.split("\n")
                skipped += not self._event(at, line_of(texts[at - number]), event, delta, process or None, rest)
            else:
                self._nanoseconds += round(float(delta) * 1000)
                skipped += 1
        return skipped

    def _event(self, number: int, text: str, event: str, delta: str, process: str | None, rest: str) -> bool:
        """Take an event: its name, microseconds since the one before, process, arguments."""
        self._nanoseconds += round(float(delta) * 1000)
        if event.startswith("Dropped"):
            self._recording.lost_changes(f"simpletrace dropped events{rest}", number)
            self._recording.run.lost(None, f"simpletrace dropped events{rest}")
            return True
        if event not in FIELDS_BY_NAME:
            return False
        values = {name: integer(value) for name, value in KEY_VALUE.findall(rest)}
        number_of = None if process is None else int(process)
        # A process stands for the thread that issued a change; a vCPU's thread is not known.
        changes = event in ("kvm_set_user_memory", "kvm_clear_dirty_log", "global_dirty_changed")
        if changes and not self._recording.wants_changes:
            return True
        thread = number_of if changes else None
        self._events.by_name(number, text, event, values, Prefix(number_of, thread, self._nanoseconds / 1e9))
        return True

    def finish(self) -> None:
        """Nothing is left open."""
