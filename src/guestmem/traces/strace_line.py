"""A line of strace, taken apart: process, time, call; with every option that changes what a line looks like.

strace ``strace.c`` (``printleader()``): ``[pid N]`` on a terminal, or ``N`` in a file (``-f``), with ``<comm>``
(``-Y``) and a comment (``--decode-pids=pidns``); the time (``-t -tt -ttt``), the seconds since the line before (``-r``,
six places or more, padded to width six before the point), or both; the number of the call (``-n``); the instruction
pointer (``-i``); a security context (``--secontext``).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .requests import integer

__all__ = ["ARGUMENTS", "LEADER", "REGION", "Call", "Clock", "Request", "Result", "request_of", "result_of"]

LEADER = re.compile(
    r"(?:\s*\[pid\s+(?P<bracket>\d{1,10})(?:<[^\n]{0,64}?>)?(?: /\* [^*\n]{0,80} \*/)?\]"
    r"|(?P<pid>\d{1,10})(?:<[^\n]{0,64}?>)?(?: /\* [^*\n]{0,80} \*/)?(?![\d.:<]))?"
    r"(?P<space> *)(?P<time>\d\d:\d\d:\d\d(?:\.\d{1,9})?|\d{1,12}(?:\.\d{1,9})?)?(?= |$)"
    r"(?: *\(\+ *(?P<delta>\d{1,12}(?:\.\d{1,9})?)\))?"
    r" *(?:\[[^\]\n]{0,200}\] *){0,3}(?=[a-z_<+?-])"
    r"|(?P<bare>)(?:\[[^\]\n]{0,200}\] *){0,3}(?=[a-z_<+?-])"
)
ARGUMENTS = re.compile(
    r"ioctl\((?:fd=)?(?P<fd>-?\d{1,10}|0x[0-9a-f]{1,8})(?:<(?P<decoration>[^\n]{0,300}?)>)?(?: \[[^\]\n]{0,200}\])?, "
    r"(?:op=|request=|cmd=)?(?P<request>.*)$",
    re.DOTALL,
)
NUMBER = re.compile(r"(0x[0-9a-f]{1,8})\b(?: /\* [^*]*\*/)?")
IOC = re.compile(r"_IOC\(([\w|]+), (0x[0-9a-f]+), (0x[0-9a-f]+|0), (0x[0-9a-f]+|0)\)")
NAME = re.compile(r"(KVM_[A-Z0-9_]+)\b(?: or [A-Z0-9_]+)*")
DIRECTIONS = {"_IOC_NONE": 0, "_IOC_WRITE": 1, "_IOC_READ": 2, "_IOC_READ|_IOC_WRITE": 3}
RESULT = re.compile(
    r"\)\s{0,80}= (?P<ret>-?\d{1,20}|0x[0-9a-f]{1,16}|\?)(?:<[^\n]{0,300}?>)?(?: (?P<errno>E[A-Z0-9]+)\b)?"
    r"(?: \((?P<comment>[^\n]{0,400})\))?(?: <(?P<duration>\d{1,9}(?:\.\d{1,9})?|unavailable)>)?\s{0,80}$"
)
REGION = re.compile(
    r"\s*(?:arg=|argp=)?\{slot=(\w{1,24}), flags=([^,}]{0,200}), guest_phys_addr=(\w{1,24}), memory_size=(\w{1,24}), "
    r"userspace_addr=(\w{1,24})(?:, [^}]{0,200})?\}\)"
)


class Request(NamedTuple):
    """An ioctl's request: its number, or its name, and where its argument begins."""

    number: int | None
    name: str
    end: int


def request_of(text: str) -> Request | None:
    """The request that ``text`` begins with: a number, a name, both (``-X verbose``), or ``_IOC(…)``; else None."""
    if match := NAME.match(text):
        return Request(None, match[1], match.end())
    if match := NUMBER.match(text):
        return Request(int(match[1], 16), "", match.end())
    if (match := IOC.match(text)) and match[1] in DIRECTIONS:
        kind, number, size = (int(match[i], 16) for i in (2, 3, 4))
        return Request(
            DIRECTIONS[match[1]] << 30 | (size & 0x3FFF) << 16 | (kind & 0xFF) << 8 | number & 0xFF, "", match.end()
        )
    return None


class Result:
    """What stands behind ``=``; ``ret`` is None for ``?``."""

    __slots__ = ("comment", "duration", "errno", "ret")

    def __init__(self, match: re.Match[str]) -> None:
        self.ret = None if match["ret"] == "?" else integer(match["ret"])
        self.errno = match["errno"] or ""
        self.comment = match["comment"] or ""
        duration = match["duration"]
        self.duration = None if duration is None or duration == "unavailable" else float(duration)


def result_of(call: str) -> Result | None:
    """What stands behind the last ``) = `` of a call, if anything does."""
    start = call.rfind(" = ")
    while start > 0:
        bracket = call.rfind(")", 0, start + 1)
        if bracket >= 0 and not call[bracket + 1 : start].strip() and (match := RESULT.match(call, bracket)):
            return Result(match)
        start = call.rfind(" = ", max(0, start - 500), start)
    return None


class Call:
    """An ioctl of which the end is still to come."""

    __slots__ = ("began", "detached", "line", "name", "text")

    def __init__(self, line: int, text: str, began: float | None, name: str, *, detached: bool) -> None:
        self.line, self.text, self.began, self.name, self.detached = line, text, began, name, detached


class Clock:
    """Seconds of each line's stamp: since 1970 (``-ttt``), since the first midnight (``-tt``), or summed up (``-r``).

    ``digits`` is the largest number of places that a stamp had: 0 is whole seconds. ``length`` is how many characters
    the last stamp of ``unix`` had.
    """

    __slots__ = ("_day", "_first_of_delta", "_relative", "digits", "last", "length")

    def __init__(self) -> None:
        self._day = self._relative = 0.0
        self._first_of_delta: float | None = None
        self.last: float | None = None
        self.digits = self.length = 0

    def unix(self, stamp: str) -> float:
        """The time of a line with seconds and their parts since 1970, and nothing else."""
        time = float(stamp)
        if self.last is None or time > self.last:
            self.last = time
        if len(stamp) != self.length:
            self.length = len(stamp)
            self.digits = max(self.digits, len(stamp) - stamp.index(".") - 1)
        return time

    def saw(self, time: float) -> None:
        """There were stamps for ``unix`` up to ``time``, all of them as long as its last."""
        if self.last is None or time > self.last:
            self.last = time

    def time(self, stamp: str | None, space: str, *, has_pid: bool, delta: str | None) -> float | None:
        """The time of a line, or None if it has no stamp."""
        if stamp is None:
            return None
        point = stamp.find(".")
        whole = stamp if point < 0 else stamp[:point]
        if point < 0 and delta is not None and "." in delta:  # -t -r: whole seconds, and exact steps
            if self._first_of_delta is None:
                self._first_of_delta = self._absolute(stamp)
            else:
                self._relative += float(delta)
            time = self._first_of_delta + self._relative
            self.digits = max(self.digits, len(delta) - delta.index(".") - 1)
        elif ":" not in stamp and point > 0 and len(space) - has_pid + len(whole) >= 6 and len(whole) < 9:
            self._relative += float(stamp)
            time = self._relative
            self.digits = max(self.digits, len(stamp) - point - 1)
        else:
            time = self._absolute(stamp)
            self.digits = max(self.digits, 0 if point < 0 else len(stamp) - point - 1)
        if self.last is None or time > self.last:
            self.last = time
        return time

    def _absolute(self, stamp: str) -> float:
        if ":" not in stamp:
            return float(stamp)
        time = int(stamp[:2]) * 3600 + int(stamp[3:5]) * 60 + float(stamp[6:]) + self._day
        if self.last is not None and time < self.last - 43200:
            self._day += 86400.0
            time += 86400.0
        return time
