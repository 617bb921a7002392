"""What stands before an event in QEMU's outputs: process, thread and time, as each backend and each logger prints them.

QEMU ``scripts/tracetool/backend/*.py`` and ``util/log.c``: ``THREAD@SECONDS.MICROS:`` (log, to QEMU 9), an ISO 8601
time (log, QEMU 10), ``PROCESS@NANOSECONDS`` (``qemu-trace-stap``), ftrace's own columns (ftrace, through
``trace_marker``), or what a system log prints: ``Jan 10 10:00:00 host qemu-system-x86_64[PROCESS]:`` and the forms of
``journalctl -o``.
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import NamedTuple

from . import prefix as tracepoint

__all__ = ["Prefix", "iso_time", "read_prefix"]

THREAD_AND_TIME = re.compile(r"(?:^|\s)(\d{1,10})@(\d{1,20}\.\d+):\s*$")
FTRACE = re.compile(
    r" *[^\[@\n]{1,48}?[- ] *(\d{1,10}) +\[(\d{1,5})\] +(?:[^\s\d]\S{2,7} +)?(\d{1,12}\.\d{6,9}): +"
    r"(?:tracing_mark_write: +)?$"
)
"""ftrace's columns as they are by default: what they are otherwise, ``prefix`` tells."""
PROCESS_AND_NANOSECONDS = re.compile(r"(?:^|\s)(\d{1,10})@(\d{1,20}) \s*$")
ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d):(\d\d)([.,]\d{1,9})?(Z|[+-]\d\d:?\d\d)?")
SYSLOG_TIME = re.compile(r"([A-Z][a-z]{2} [ \d]\d \d\d:\d\d):(\d\d)(\.\d{1,9})?\b")
UNIX_TIME = re.compile(r"^\[?\s*(\d{1,10}\.\d{3,9})\]?\s")
LIKE_TIME = re.compile(r"(?<![\w.])\d{1,12}[.,]\d{3,9}(?![\w.])|\d\d:\d\d:\d\d")
"""What would be a time, or has one in it."""
IDENT = re.compile(r"[\w.@-]+\[(\d{1,10})\]:\s")


class Prefix(NamedTuple):
    """What a prefix tells: ``time`` is None without a stamp finer than a second; ``why`` says what is wrong."""

    process: int | None
    thread: int | None
    time: float | None
    cpu: int | None = None
    why: str = ""


NOTHING = Prefix(None, None, None)
WHOLE_SECONDS = "stamps of whole seconds cannot tell which of two events came first, or how long anything took"
NO_TIME = "what stands before the event holds a number that is not understood as a time, so the event has none"
TICKS = "stamps of a clock that does not count seconds (x86-tsc, counter): trace_clock mono has them in seconds"


def read_prefix(text: str) -> Prefix:
    """What stands before an event; nothing that is not there is guessed.

    >>> read_prefix("7020@95526.400000:")[:3], read_prefix("5555@1768039201000000000 ")[:3]
    ((None, 7020, 95526.4), (5555, 5555, 1768039201.0))
    >>> read_prefix("Jan 10 10:00:00 host qemu-kvm[77]: ").process
    77
    """
    if not text:
        return NOTHING
    text = text[-400:]
    if text[0] == " " and (match := FTRACE.match(text)) is not None:
        return Prefix(None, int(match[1]), float(match[3]), int(match[2]))
    ident = IDENT.search(text)
    process = int(ident[1]) if ident else None
    if match := THREAD_AND_TIME.search(text):
        return Prefix(process, int(match[1]), float(match[2]))
    if match := PROCESS_AND_NANOSECONDS.search(text):
        return Prefix(int(match[1]), int(match[1]), int(match[2]) / 1e9)
    if (found := tracepoint.parse(text)) is not None and found.time is not None:
        if not found.seconds:
            return Prefix(found.process, found.thread, None, found.cpu, TICKS)
        return Prefix(found.process, found.thread, found.time, found.cpu)
    if match := ISO_TIME.search(text):
        return _with_fraction(process, _iso_minute(match[1], match[4] or "Z"), match[2], match[3])
    if match := SYSLOG_TIME.search(text):
        return _with_fraction(process, _syslog_minute(match[1]), match[2], match[3])
    if match := UNIX_TIME.search(text):
        return Prefix(process, None, float(match[1]))
    return Prefix(process, None, None, None, NO_TIME if LIKE_TIME.search(text) else "")


def _with_fraction(process: int | None, minute: float | None, second: str, fraction: str | None) -> Prefix:
    if minute is None:
        return Prefix(process, None, None)
    if not fraction:
        return Prefix(process, None, None, None, WHOLE_SECONDS)
    return Prefix(process, None, minute + int(second) + float("0." + fraction[1:]))


def iso_time(minute: str, second: str, fraction: str, zone: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time, of which ``fraction`` are digits; None if there is no such day or hour.

    >>> iso_time("1970-01-02T00:01", "02", "500", "Z")
    86462.5
    """
    whole = _iso_minute(minute, zone)
    return None if whole is None else whole + int(second) + float("0." + fraction)


@functools.lru_cache(maxsize=256)
def _iso_minute(text: str, zone: str) -> float | None:
    """Seconds since 1970 of a minute; None if there is no such day or hour."""
    try:
        stamp = datetime.fromisoformat(text + ("+00:00" if zone == "Z" else zone))
        return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


@functools.lru_cache(maxsize=256)
def _syslog_minute(text: str) -> float | None:
    """Seconds since the year began, in a leap year: a system log does not say which one it is."""
    try:
        stamp = datetime.strptime(f"2000 {text}", "%Y %b %d %H:%M").replace(tzinfo=UTC)
    except ValueError:
        return None
    return stamp.timestamp() - datetime(2000, 1, 1, tzinfo=UTC).timestamp()
