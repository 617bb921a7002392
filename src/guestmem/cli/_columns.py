"""Text for a terminal of 80 columns: lines that are wrapped between words, and counts with their noun."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

__all__ = ["COLUMNS", "counted", "lines_of", "say", "say_list"]

COLUMNS = 80
"""How wide lines may be."""


def counted(number: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> counted(1, "model"), counted(2000, "model"), counted(0, "branch", "branches")
    ('1 model', '2,000 models', '0 branches')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def lines_of(text: str, first: str = "", rest: str = "    ") -> list[str]:
    """A text in lines: ``first`` before the first, ``rest`` before the others; names and numbers are never broken.

    >>> lines_of("one vCPU " * 10, "  ", "      ")[1]
    '      vCPU one vCPU'
    """
    return textwrap.wrap(
        text, COLUMNS, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]


def say(text: str, first: str = "", rest: str = "    ") -> None:
    """Print a text in lines: see ``lines_of``."""
    print("\n".join(lines_of(text, first, rest)))


def say_list(begin: str, words: Iterable[str], rest: str = "        ") -> None:
    """Print words one after the other, with commas."""
    say(begin.lstrip() + ", ".join(words), begin[: len(begin) - len(begin.lstrip())], rest)
