"""A sequence of calls carried out again on this machine's kernel: what the Python scripts that conform prints call."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .calls import Answer, Call
from .kernel import Kernel
from .words import answer_in_words, difference_in_words

__all__ = ["replay"]


def replay(calls: Sequence[tuple[Call, Answer | None]], other: str = "model") -> int:
    """Carry out calls with the answers expected, which are those of ``other``; prints a line each, and each difference.

    Returns 1 if one is answered otherwise, else 0.
    """
    lines = []
    differs = 0
    with Kernel() as kernel, kernel.vm() as vm:
        lines.append(kernel.name)
        for call, expected in calls:
            if expected is None:
                continue
            answer = vm.answer(call)
            differs |= answer != expected
            lines.append(str(call))
            lines.append("    kernel: " + answer_in_words(answer))
            if answer != expected:
                lines.append(f"    {other}:".ljust(12) + answer_in_words(expected))
                lines.append("    " + difference_in_words(answer, expected, other))
    sys.stdout.write("\n".join(lines) + "\n")
    return int(differs)
