"""What a reader hands over while it goes through a trace, line by line.

A reader knows one format; the recording checks and keeps what all formats have in common. To add a format, write a
``Reader`` and name it in ``formats.READERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

from ..errors import TraceError
from .machines import Machines
from .recorder import RunStateRecorder
from .timeline import DirtyLogClear, DmaChange, GlobalDirtyChange

if TYPE_CHECKING:
    import re

    from .late_start import AssumedSlot

NOTES = 32
"""Different notes that are kept: a hostile file does not fill the screen."""

__all__ = ["Other", "Reader", "Recording", "Rows"]


class Recording:
    """One trace in the making.

    ``wants_changes`` is False when only run state is read from the file; ``vm`` is what ``--vm`` said, or None.
    Readers call ``machines.change`` for a change, ``run`` for what they see of vCPUs, ``note`` for what a user should
    know about the recording, and append to the lists.
    """

    __slots__ = (
        "_notes",
        "changes_in_ftrace",
        "dirty_log_clears",
        "dma_changes",
        "format",
        "global_dirty_changes",
        "guest_memfds",
        "lost",
        "machines",
        "path",
        "run",
        "slow",
        "tells_calls",
        "wants_changes",
    )

    def __init__(
        self,
        path: str,
        *,
        wants_changes: bool = True,
        vm: str | None = None,
        assumed: tuple[AssumedSlot, ...] = (),
    ) -> None:
        self.path, self.wants_changes = path, wants_changes
        self.format = ""
        self.slow = ""
        """What made the recorder slow, if it was (``strace -k``), so that its own pauses end no transaction."""
        self.changes_in_ftrace = False
        """Whether changes stand in ftrace's buffer (QEMU's backend ftrace), so that what is lost there may be some."""
        self.tells_calls = False
        """Whether QEMU's own trace told of ioctls of the VM or of vCPUs too."""
        self.machines = Machines(path, vm, assumed)
        self.run = RunStateRecorder()
        if wants_changes:
            self.run.forgets = True
            self.machines.on_change = self.run.change_at
        self.dirty_log_clears: list[DirtyLogClear] = []
        self.global_dirty_changes: list[GlobalDirtyChange] = []
        self.dma_changes: list[DmaChange] = []
        self.guest_memfds: dict[int, tuple[int, int]] = {}
        """By line, file descriptor and offset in bytes of the guest_memfd that a change binds."""
        self.lost: list[tuple[int, str]] = []
        self._notes: dict[str, tuple[int, int]] = {}

    def note(self, message: str, line: int) -> None:
        """Something that a user should know; said once, with the first line and how many there are."""
        first, count = self._notes.get(message, (line, 0))
        if count or len(self._notes) < NOTES:
            self._notes[message] = first, count + 1

    def lost_changes(self, message: str, line: int) -> None:
        """The recorder dropped events here, changes among them perhaps."""
        if len(self.lost) < NOTES:
            self.lost.append((line, message))
        self.note("the recorder dropped events: changes may be missing from the trace", line)

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes as sentences, in order."""
        return tuple(
            f"{message} (line {first}{f' and {count - 1} more' if count > 1 else ''})" if first else message
            for message, (first, count) in self._notes.items()
        )

    def claim(self, name: str, line: int, text: str) -> None:
        """The reader ``name`` found a change: raise TraceError if another one did before."""
        if self.format and self.format != name:
            message = f"a change as {name} prints it, after changes as {self.format} prints them: give one of the two"
            raise TraceError(message, path=self.path, line=line, text=text)
        self.format = name

    def bad_line(self, message: str, line: int, text: str) -> NoReturn:
        """Raise TraceError for a line that names an event, yet cannot be read."""
        raise TraceError(message, path=self.path, line=line, text=text.strip())


Rows = list[tuple[str, ...]]
"""Lines, each with the groups of a reader's pattern."""
Other = Callable[[int, str], object]
"""Takes a line that is none of a reader's pattern, with its number."""


class Reader(Protocol):
    """Reads one format. A reader sees each line once, in order, until it or another says that it used the line."""

    name: str
    """One word for the format."""
    events: str
    """What it looks for, as the error for a file without any event says it."""

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches every line, its end included: in groups those that come by the million, in the last one any other."""

    @property
    def is_curious(self) -> bool:
        """Whether it may learn something from a line that has none of the words that lines of traces have."""

    def __init__(self, recording: Recording) -> None: ...

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """Take the lines of ``block``, of which the first has ``number``, as ``pattern`` found them.

        Any other line goes to ``other``. Returns how many lines said nothing that ``other`` did not see. A reader
        without a pattern is never asked.
        """

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it said something. Raises TraceError if it names an event and cannot be read."""

    def finish(self) -> None:
        """The trace is over."""
