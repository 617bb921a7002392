"""What stands before a tracepoint: ftrace's, trace-cmd's and perf's columns, each of which may be there or not.

- ftrace (``trace``, ``trace_pipe``): ``comm-TID [(TGID)] [CPU] FLAGS SECONDS: event``; with ``latency-format``,
  ``comm-TID CPUFLAGS SECONDS: event`` (Linux ``kernel/trace/trace_output.c``);
- ``trace-cmd report``: the same without flags, or with them (``-l``);
- ``perf script``: ``comm TID [CPU] SECONDS: [PERIOD] system:event``, where ``-F`` may leave out or add any column.

The columns are found from the right: the time is what ends in a colon right before the event. A thread's name may hold
blanks, dashes, brackets and digits; so the process or thread number is the last number before the CPU, or the time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Columns", "parse", "resolution_of"]

LONGEST = 400
"""Characters that are looked at: a name has at most 15, and the columns have their widths."""

TIME = re.compile(
    r"(?:^|[\s\]])(\d{1,20})(?:\.(\d{1,9}))?:\s+(?:\(?\+?\s*\d+(?:\.\d+)?\)?\s+)?(?:\d+\s+)?(?:[\w./-]{1,40}:\s*){0,3}$"
)
CPU = re.compile(r"\[(\d{1,5})\]\s*(?:[^\s\d\[\]]\S{2,8})?\s*$")
LATENCY = re.compile(r"(?:^|\s)(\d{1,4})([.dDbX][.NnpPBbL][.hHsSzZ][\d.#?]{1,3})\s*$")
TGID = re.compile(r"\(\s*(\d{1,10}|-+)\s*\)\s*$")
THREAD = re.compile(r"(?:^|[-\s:])(?:(\d{1,10})/\s*)?(\d{1,10})\s*$")


class Columns(NamedTuple):
    """What the columns tell; None for what is not there. ``seconds``: whether ``time`` counts seconds."""

    process: int | None
    thread: int | None
    cpu: int | None
    time: float | None
    seconds: bool
    digits: int


def parse(text: str) -> Columns | None:
    """The columns before an event, ``text`` being all that stands before its name; None if no time is there.

    >>> parse(" CPU 0/KVM-9 [002] d..1. 95526.463470: ")
    Columns(process=None, thread=9, cpu=2, time=95526.46347, seconds=True, digits=6)
    >>> parse("preempt_test 25070 95526.463470:     kvm:")[:4]
    (None, 25070, None, 95526.46347)
    """
    text = text[-LONGEST:]
    match = TIME.search(text)
    if match is None:
        return None
    whole, fraction = match.groups()
    time = float(whole) if fraction is None else float(f"{whole}.{fraction}")
    rest = text[: match.start(1)].rstrip()
    process: int | None = None
    thread: int | None = None
    cpu: int | None = None
    if (found := CPU.search(rest)) or (found := LATENCY.search(rest)):
        cpu = int(found[1])
        rest = rest[: found.start()].rstrip()
    if found := TGID.search(rest):
        process = int(found[1]) if found[1].isdigit() else None
        rest = rest[: found.start()].rstrip()
    if found := THREAD.search(rest):
        thread = int(found[2])
        if found[1]:
            process = int(found[1])
    return Columns(process, thread, cpu, time, fraction is not None, len(fraction or ""))


def resolution_of(digits: int) -> float:
    """How fine stamps with at most ``digits`` places are, in seconds: tracers print 0, 3, 6 or 9 of them."""
    return {0: 1.0, 3: 1e-3, 9: 1e-9}.get(digits, 1e-6)
