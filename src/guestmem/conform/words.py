"""Answers, and where two of them differ, in plain words."""

from __future__ import annotations

import errno

from .calls import LOG_BYTES, Answer

__all__ = ["UNTOUCHED", "answer_in_words", "difference_in_words", "result_in_words"]

UNTOUCHED = 0xA5
"""What is in the buffer of a log before a call."""


def result_in_words(result: int) -> str:
    """A result, or the name of the errno that it is minus of."""
    return str(result) if result >= 0 else errno.errorcode.get(-result, str(result))


def answer_in_words(answer: Answer | None) -> str:
    """An answer on one line.

    >>> answer_in_words(Answer(-17)), answer_in_words(Answer(0, bytes.fromhex("0500a5a5"))), answer_in_words(None)
    ('EEXIST', '0, log 0500', 'not asked')
    """
    if answer is None:
        return "not asked"
    words = [result_in_words(answer.result)]
    if answer.log:
        words.append("log " + answer.log.rstrip(bytes([UNTOUCHED])).hex())
    if answer.exits:
        words.append("exits: " + "; ".join(answer.exits))
    return ", ".join(words)


def difference_in_words(kernel: Answer | None, model: Answer | None, other: str = "model") -> str:
    """Where the first answer differs from the second: its result, the pages of its log, its exits or ring entries.

    >>> difference_in_words(Answer(0, bytes([7, 0])), Answer(0, bytes([2, 128])))
    'dirty in the kernel only: pages 0, 2; dirty in the model only: page 15'
    >>> difference_in_words(Answer(0), Answer(-22))
    'the kernel answers 0, the model EINVAL'
    """
    if kernel is None or model is None or kernel.result != model.result:
        first, second = ("nothing" if answer is None else result_in_words(answer.result) for answer in (kernel, model))
        return f"the kernel answers {first}, the {other} {second}"
    words = []
    if kernel.log != model.log:
        lengths = [len(answer.log.rstrip(bytes([UNTOUCHED]))) for answer in (kernel, model)]
        if lengths[0] != lengths[1] and max(map(len, (kernel.log, model.log))) == LOG_BYTES:
            return f"the kernel writes {lengths[0]} bytes of log, the {other} {lengths[1]}"
        ours, theirs = (int.from_bytes(answer.log, "little") for answer in (kernel, model))
        words += [
            f"dirty in the {name} only: {_pages(bits)}"
            for name, bits in (("kernel", ours & ~theirs), (other, theirs & ~ours))
            if bits
        ]
    if kernel.exits != model.exits:
        for name, its, others in (("kernel", kernel.exits, model.exits), (other, model.exits, kernel.exits)):
            only = [each for each in its if each not in others]
            words += [f"in the {name} only: {', '.join(only)}"] if only else []
    return "; ".join(words) or "the same exits in another order"


def _pages(bits: int) -> str:
    pages = [page for page in range(bits.bit_length()) if bits >> page & 1]
    runs: list[list[int]] = []
    for page in pages:
        if runs and runs[-1][1] == page - 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"page{'s' if len(pages) > 1 else ''} {shown}"
