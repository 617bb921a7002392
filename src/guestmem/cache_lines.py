"""A cache line of shared words at a time, for searches in nodes that nobody writes meanwhile; in both forms.

Compiled, eight words are one or two vector loads, and a comparison and a count of bits beside; interpreted, eight
relaxed loads. A vector load is no atomic access: only words that no other thread can write between the acquire that
made them visible and the end of the read-side section may be read so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .atomics import load_relaxed
from .compiled import INTERPRETED, Words

__all__ = ["count_at_most", "prefetch"]

if TYPE_CHECKING or INTERPRETED:

    def count_at_most(words: Words, index: int, key: int) -> int:
        """How many of the eight words from ``index`` on are at most ``key``."""
        return sum(load_relaxed(words, index + at) <= key for at in range(8))

    def prefetch(words: Words, index: int) -> None:
        """Say that the cache line of a word will be read soon; there is no access."""

else:
    from ._vectors import count_at_most, prefetch
