"""The lines of a text of any length, in bounded memory.

A text is read in blocks; a line that is longer than any tracer prints is cut, and its rest is dropped, so that a file
without a line end costs no more than a block.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LONGEST_LINE", "Source", "blocks_of", "line_of", "source_of"]

BLOCK = 1 << 18
LONGEST_LINE = 1 << 14
"""Characters of a line that are looked at. strace, perf and QEMU print some hundreds at most."""


class Source(Protocol):
    """What blocks are read from. ``left`` is how many bytes there are still, or 0 where that is not known."""

    @property
    def left(self) -> int:
        """See the class."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size`` of them."""


class _File:
    """A regular file, read from a position of its own, so that a copy of this process reads on from there too."""

    __slots__ = ("_at", "_file", "_size")

    def __init__(self, file: int, at: int, size: int) -> None:
        self._file, self._at, self._size = file, at, size

    @property
    def left(self) -> int:
        return self._size - self._at

    def read(self, size: int, /) -> bytes:
        found = os.pread(self._file, size, self._at)
        self._at += len(found)
        return found


class _Stream:
    """Anything else."""

    __slots__ = ("_stream",)

    left = 0

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        return self._stream.read(size)


def source_of(stream: BinaryIO) -> Source:
    """Where to read ``stream`` from, of which nothing was taken so far."""
    try:
        file, at = stream.fileno(), stream.tell()
        told = os.fstat(file)
    except (OSError, AttributeError):
        return _Stream(stream)
    regular = stat.S_ISREG(told.st_mode) and hasattr(os, "pread")
    return _File(file, at, told.st_size) if regular else _Stream(stream)


def blocks_of(stream: Source) -> Iterator[str]:
    """``stream`` as UTF-8 with replacements, in blocks of whole lines; what has no line end is a block of its own.

    Such a block is the last line, or the begin of one that is longer than a block: no more of it is looked at.
    """
    rest = b""
    skipping = False
    while block := stream.read(BLOCK):
        end = block.rfind(b"\n") + 1
        if not end:  # no line end in the block
            if not skipping:
                rest += block
            if len(rest) > BLOCK:
                yield rest.decode("utf-8", "replace")[:LONGEST_LINE]
                rest, skipping = b"", True
            continue
        whole, tail = block[:end], block[end:]
        if skipping:
            whole = whole[whole.index(b"\n") + 1 :]
            skipping = False
        if rest or whole:
            yield (rest + whole).decode("utf-8", "replace")
        rest = tail
    if rest and not skipping:
        yield rest.decode("utf-8", "replace")[:LONGEST_LINE]


def line_of(text: str) -> str:
    """``text``, which has no line end, as a reader takes it: with one, or cut if no tracer prints that much."""
    return text + "\n" if len(text) <= LONGEST_LINE else text[:LONGEST_LINE]
