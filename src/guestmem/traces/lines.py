"""The lines of a text of any length, in bounded memory.

A text is read in blocks; a line that is longer than any tracer prints is cut, and its rest is dropped, so that a file
without a line end costs no more than a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LONGEST_LINE", "blocks_of", "line_of"]

BLOCK = 1 << 18
LONGEST_LINE = 1 << 14
"""Characters of a line that are looked at. strace, perf and QEMU print some hundreds at most."""


def blocks_of(stream: BinaryIO) -> Iterator[str]:
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
