"""A sequence of calls carried out again on this machine's kernel: what the Python scripts that conform prints call."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from .calls import Answer, Call
from .kernel import Kernel

__all__ = ["answer_in_words", "replay"]


def answer_in_words(answer: Answer | None) -> str:
    """An answer on one line.

    >>> answer_in_words(Answer(-17)), answer_in_words(Answer(0, bytes.fromhex("0500a5a5"))), answer_in_words(None)
    ('EEXIST', '0, log 0500', 'not asked')
    """
    if answer is None:
        return "not asked"
    words = [str(answer.result) if answer.result >= 0 else errno.errorcode.get(-answer.result, str(answer.result))]
    if answer.log:
        words.append("log " + answer.log.rstrip(b"\xa5").hex())
    if answer.exits:
        words.append("exits: " + "; ".join(answer.exits))
    return ", ".join(words)


def replay(calls: Sequence[tuple[Call, Answer | None]]) -> int:
    """Carry out calls with the answers expected; prints a line each; returns 1 if one is answered otherwise, else 0."""
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
                lines.append("    model:  " + answer_in_words(expected))
    sys.stdout.write("\n".join(lines) + "\n")
    return int(differs)
