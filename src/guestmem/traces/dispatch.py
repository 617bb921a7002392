"""Hands the lines of a trace to the readers, a block at a time where one reader takes most of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from . import ftrace_block, perf_trace, strace_block
from .columns import Plain
from .event_pieces import take_event_pieces
from .formats import READERS
from .ftrace import FtraceReader
from .lines import LONGEST_LINE, line_of
from .perf_trace import PerfTraceReader
from .pieces import take_pieces
from .qemu import QemuReader
from .qemu_block import plain_or_pieces
from .qemu_log import log_block_of
from .strace import StraceReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from .event_pieces import EventPiecewise
    from .pieces import Pieces, Piecewise
    from .qemu_log import LogBlock
    from .recording import Reader, Recording

__all__ = ["EVENTS", "PIECES", "WORDS", "Lines", "log_or_events_of"]

WORDS = (
    *("kvm_", "KVM_", "ioctl", "vfio_listener", "global_dirty", "guestmem", "#"),
    *("memslot", "create_", " run"),
    *("ost ", "lost", "LOST", "dropped", "DROPPED", "overrun", "THROTTLE"),
    *("libvirt version", "terminating on signal", "shutting down, reason", "QEMU emulator version"),
)
"""A line that says something has one of these, but for those that a reader is curious about."""
PIECES: dict[object, Callable[[str], Pieces]] = {
    StraceReader: strace_block.pieces_of,
    PerfTraceReader: perf_trace.pieces_of,
}
"""What makes pieces of a block, for readers that take them."""
EVENTS: dict[object, Callable[[str], Any]] = {
    QemuReader: plain_or_pieces,
    FtraceReader: ftrace_block.pieces_of,
}
"""The same of pieces of events, or columns of a block that has nothing but changes."""


def log_or_events_of(block: str) -> Any:
    """What a block of QEMU's lines has: the changes of a log, or what ``qemu_block`` makes of it."""
    log = log_block_of(block, WORDS)
    return plain_or_pieces(block) if log is None else log


class Lines:
    """Hands each line to the readers, first to the one that took the last, and counts those that none took.

    Blocks of lines go to the reader that took most of the block before: what its ``pattern`` finds is read at once, and
    the lines in between come one by one.
    """

    __slots__ = ("_curious", "_recording", "_taken", "_word", "leading", "readers", "skipped")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.readers: list[Reader] = [reader(recording) for reader in READERS]
        self.skipped = 0
        self.leading = self.readers[0]
        self._taken: dict[Reader, int] = {}
        """Lines of this block that each reader took one by one."""
        self._word = WORDS[0]
        """The one of WORDS that was found last."""
        self._curious: list[Reader] | None = None
        """Who sees a line of this block without any of WORDS. None: all do."""

    def take_block(self, number: int, block: str, made: Any = None) -> int:
        """Take whole lines, of which the first has ``number``; how many they were.

        ``made`` is what another process made of them for the leading reader, or None.
        """
        leading, taken = self.leading, self._taken
        taken.clear()
        if self._recording.format:  # before that, a line may be the first of any
            self._curious = [reader for reader in self.readers if reader.is_curious]
        pieces_of = PIECES.get(type(leading))
        log: LogBlock | None = None
        if isinstance(leading, QemuReader) and self._curious == []:
            log = made if isinstance(made, dict) else log_block_of(block, WORDS) if made is None else None
        before, takes_blocks = self.skipped, True
        if pieces_of is not None:
            pieces = pieces_of(block) if made is None else made
            count = take_pieces(cast("Piecewise", leading), self._recording.run, number, pieces, block, self.take)
        elif log is not None:
            count = log["lines"]
            silent = cast("QemuReader", leading).take_log(number, log, block, self.take)
            self.skipped += silent
        elif (events_of := EVENTS.get(type(leading))) is not None:
            events = made if isinstance(made, tuple) else events_of(block)
            if len(events) == len(Plain._fields):
                count = cast("QemuReader", leading).take_plain(number, Plain.of_bytes(events), block)
            else:
                taker = cast("EventPiecewise", leading)
                count = take_event_pieces(taker, self._recording.run, number, events, block, self.take)
        elif leading.pattern is not None:
            rows = made if isinstance(made, list) else leading.pattern.findall(block)
            count = len(rows)
            silent = leading.rows(number, rows, block, self.take)
            self.skipped += silent
        else:
            takes_blocks = False
            texts = block.split("\n")
            count = len(texts) - 1
            for i in range(count):
                self.take(number + i, line_of(texts[i]))
        if takes_blocks:
            taken[leading] = count - (self.skipped - before) - sum(taken.values()) + taken.get(leading, 0)
        if taken:
            self.leading = max(taken, key=taken.__getitem__)
        return count

    def look_at_all(self) -> None:
        """The next line is none of a block's."""
        self._curious = None

    def take(self, number: int, text: str) -> bool:
        """Take one line; whether it said anything to anybody."""
        readers = self.readers
        if self._curious is not None and self._word not in text:
            for word in WORDS:
                if word in text:
                    self._word = word
                    break
            else:
                readers = self._curious
        for i, reader in enumerate(readers):
            if reader.line(number, text):
                if i and readers is self.readers:
                    readers[0], readers[i] = reader, readers[0]  # the next line is likely of the same kind
                self._taken[reader] = self._taken.get(reader, 0) + 1
                return True
        self.skipped += 1
        if len(text) == LONGEST_LINE and text[-1] != "\n":
            message = f"a line of more than {LONGEST_LINE} characters, of which the rest is not looked at"
            self._recording.note(message, number)
        return False
