"""What a reader hands over while it goes through a trace, line by line.

A reader knows one format; the recording checks and keeps what all formats have in common. To add a format, write a
``Reader`` and name it in ``formats.READERS``.
"""

from __future__ import annotations

from typing import NoReturn, Protocol

from ..errors import TraceError
from .recorder import RunStateRecorder
from .replay import Replay
from .timeline import DirtyLogClear, GlobalDirtyChange

__all__ = ["Reader", "Recording"]


class Recording:
    """One trace in the making.

    ``wants_changes`` is False when only run state is read from the file; ``vm`` is the file descriptor of the VM that
    was asked for, or None. Readers call ``replay.change`` for a change, ``run`` for entries to and exits from the
    guest, and append to the two lists.
    """

    __slots__ = (
        "dirty_log_clears",
        "format",
        "global_dirty_changes",
        "path",
        "replay",
        "run",
        "slow",
        "vm",
        "wants_changes",
    )

    def __init__(self, path: str, *, wants_changes: bool = True, vm: int | None = None) -> None:
        self.path, self.wants_changes, self.vm = path, wants_changes, vm
        self.format = ""
        self.slow = ""
        """What made the recorder slow, if it was (``strace -k``), so that its own pauses end no transaction."""
        self.replay = Replay(path)
        self.run = RunStateRecorder()
        self.dirty_log_clears: list[DirtyLogClear] = []
        self.global_dirty_changes: list[GlobalDirtyChange] = []

    def claim(self, name: str, line: int, text: str) -> None:
        """The reader ``name`` found a change: raise TraceError if another one did before."""
        if self.format and self.format != name:
            message = f"a change as {name} prints it, after changes as {self.format} prints them: give one of the two"
            raise TraceError(message, path=self.path, line=line, text=text)
        self.format = name

    def bad_line(self, message: str, line: int, text: str) -> NoReturn:
        """Raise TraceError for a line that names an event, yet cannot be read."""
        raise TraceError(message, path=self.path, line=line, text=text.strip())


class Reader(Protocol):
    """Reads one format. A reader sees each line once, in order, until it or another says that it used the line."""

    name: str
    """One word for the format."""
    events: str
    """What it looks for, as the error for a file without any event says it."""

    def __init__(self, recording: Recording) -> None: ...

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it said something. Raises TraceError if it names an event and cannot be read."""

    def finish(self) -> None:
        """The trace is over."""
