"""Blocks of a log in which QEMU's changes stand here and there, with an ISO 8601 time before them (QEMU 10's own, say).

Most lines of such a log say nothing. Those that may are found in the block as a whole, by the words that a line that
says something has; of the others nobody looks at the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .columns import NO_THREAD
from .lines import LONGEST_LINE
from .qemu_block import plain_of
from .qemu_prefix import iso_time

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LogBlock", "log_block_of", "speaking"]

LogBlock = dict[str, Any]
"""``lines``: how many; ``speak``: in order, the places among them of those that may say something, each alone, or many
that are plain changes, with the columns of ``Plain``."""
RARE = 16
"""One line of how many may be QEMU's own, ``THREAD@SECONDS:kvm_…``, which ``qemu_block`` is there for."""
CHANGE = re.compile(
    r"(?:(\d{4}-\d\d-\d\d[T ]\d\d:\d\d):(\d\d)\.(\d{1,9})(Z|[+-]\d\d:?\d\d) kvm_set_user_memory AddrSpace#(\d{1,5}) "
    r"Slot#(\d{1,5}) flags=0x([0-9a-f]{1,8}) gpa=0x([0-9a-f]{1,16}) size=0x([0-9a-f]{1,16}) ua=0x([0-9a-f]{1,16})"
    r"(?: guest_memfd=-1 guest_memfd_offset=0x0)? ret=(-?\d{1,10})|.*)\n",
    re.ASCII,
)


def speaking(block: str, words: Iterable[str]) -> list[tuple[int, int]]:
    """Begin and end of the lines of ``block`` that have one of the ``words``, in order. O(words · characters)."""
    found = set()
    for word in words:
        at = block.find(word)
        while at >= 0:
            end = block.find("\n", at)
            found.add((block.rfind("\n", 0, at) + 1, end))
            at = block.find(word, end)
    return sorted(found)


def log_block_of(block: str, words: Iterable[str]) -> LogBlock | None:
    """What of ``block`` may say something; None if it is no such log, or has a line that is cut."""
    count = block.count("\n")
    if block.count(":kvm_") * RARE > count or _has_long_line(block):
        return None
    spans = speaking(block, words)
    places, done, line = [], 0, 0
    for start, _ in spans:
        line += block.count("\n", done, start)
        done = start
        places.append(line)
    rows = CHANGE.findall("".join([block[start : end + 1] for start, end in spans]))
    speak: list[Any] = []
    first = 0
    for i in range(len(rows) + 1):
        if i < len(rows) and rows[i][0]:
            continue
        if i > first:
            speak += _changes(places[first:i], rows[first:i])
        if i < len(rows):
            speak.append(places[i])
        first = i + 1
    return {"lines": count, "speak": speak}


def _changes(places: list[int], rows: list[tuple[str, ...]]) -> list[Any]:
    """The changes at ``places`` as one entry, if they are plain, else each for itself."""
    minutes, seconds, fractions, zones, *columns = zip(*rows, strict=True)
    times = tuple(map(iso_time, minutes, seconds, fractions, zones))
    plain = None
    if None not in times:
        plain = plain_of([(str(NO_THREAD),) * len(rows), times, *columns])  # type: ignore[list-item]  # float() of one
    return places if plain is None else [(places, tuple([column.tobytes() for column in plain]))]


def _has_long_line(block: str) -> bool:
    """Whether a line is longer than any that is looked at as a whole."""
    at = 0
    while at + LONGEST_LINE < len(block):
        end = block.rfind("\n", at, at + LONGEST_LINE + 1)
        if end < 0:
            return True
        at = end + 1
    return False
