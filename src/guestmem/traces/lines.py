"""The lines of a text of any length, in bounded memory.

A text is read in blocks; a line that is longer than any tracer prints is cut, and its rest is dropped, so that a file
without a line end costs no more than a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LONGEST_LINE", "lines_of"]

BLOCK = 1 << 18
LONGEST_LINE = 1 << 14
"""Characters of a line that are looked at. strace, perf and QEMU print some hundreds at most."""


def lines_of(stream: BinaryIO) -> Iterator[list[str]]:
    """The lines of ``stream`` in lists, each with its line end, as UTF-8 with replacements; at most a block at a time.

    A line of more than LONGEST_LINE characters is cut there (and so has no line end, though another line follows).
    """
    rest = b""
    skipping = False
    while block := stream.read(BLOCK):
        end = block.rfind(b"\n") + 1
        if not end:  # no line end in the block
            if not skipping:
                rest += block
            if len(rest) > BLOCK:
                yield [rest.decode("utf-8", "replace")[:LONGEST_LINE]]
                rest, skipping = b"", True
            continue
        whole, tail = block[:end], block[end:]
        if skipping:
            whole = whole[whole.index(b"\n") + 1 :]
            skipping = False
        lines = (rest + whole).decode("utf-8", "replace").split("\n")
        rest = tail
        lines.pop()
        yield [line + "\n" if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] for line in lines]
    if rest and not skipping:
        yield [rest.decode("utf-8", "replace")[:LONGEST_LINE]]
