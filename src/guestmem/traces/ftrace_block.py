"""Blocks of lines of ftrace: its events of vCPUs, and QEMU's changes among them, as pieces."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, TypedDict

from .event_pieces import PieceMaker
from .qemu_block import FIELDS, plain_of
from .qemu_prefix import FTRACE
from .recorder import entry_word, exit_word, user_exit_word

if TYPE_CHECKING:
    from .event_pieces import EventKey, EventPieces, Lane

__all__ = [
    "COLUMNS",
    "ERRNOS",
    "IMMEDIATE_EXIT",
    "LOST_WORDS",
    "PIECES",
    "ROW",
    "Parts",
    "outcome_of",
    "parts_of",
    "pieces_of",
]

COLUMNS = r" *[^\[\n]{1,48}?[- ] *(\d{1,10}) +\[(\d{1,5})\] +(?:[^\s\d]\S{2,7} +)?(\d{1,12}\.\d{6,9}): +(?:kvm:)?"
ROW = re.compile(
    r"(?:([^\[\n]{1,72}\[\d{1,5}\] +(?:[^\s\d]\S{2,7} +)?)(\d{1,12}\.\d{6,9}): +(?:kvm:)?kvm_"
    r"(?:(entry: +vcpu \d{1,6},)(.{0,300})"
    r"|(exit: +vcpu \d{1,6},? reason [A-Za-z_][\w-]{0,60}(?![\w=-])"
    r"|userspace_exit: +reason (?:KVM_EXIT_)?\w{1,40} \(-?\d{1,10}\)).{0,300})|(.*))\n"
)
"""An event in pieces: what stands before the stamp, the stamp, and the event as far as it matters, with the rest of an
entry; else the whole line."""
PIECES = re.compile(
    r" *[^\[\n]{1,48}?[- ] *(\d{1,10}) +\[(\d+)\] +(?:[^\s\d]\S{2,7} +)?(?:entry: +vcpu (\d+),"
    r"|exit: +vcpu (\d+),? reason (.+)|userspace_exit: +reason (?:KVM_EXIT_)?(\w+) \((-?\d+)\))"
)
"""What stands before the stamp, and the event right behind it: thread, CPU, and what each event says."""
CHANGE = re.compile(
    r"( [^\[\n\"@]{1,72}\[\d{1,5}\] +(?:[^\s\d]\S{2,7} +)?)(\d{1,12}\.\d{6,9}): +tracing_mark_write: "
    rf"kvm_set_user_memory {FIELDS}",
    re.ASCII,
)
"""A change as QEMU's backend ftrace has it there: what stands before the stamp, the stamp, and the fields."""
LOST_WORDS = ("lost", "LOST", "dropped", "DROPPED", "overrun", "THROTTLE")
ODD = ("kvm_", "-trace", "trace:", "vfio_listener", "global_dirty", *LOST_WORDS)
"""A process of such a name is looked at more closely."""
IMMEDIATE_EXIT = "[immediate exit]"
ERRNOS = {"-4": "EINTR", "-11": "EAGAIN", "-14": "EFAULT"}


class Outcome(TypedDict, total=False):
    """How KVM_RUN ended."""

    reason: int
    errno: str


@functools.lru_cache(maxsize=256)
def outcome_of(name: str, number: str) -> Outcome:
    """How KVM_RUN ended: a negative errno prints ``restart`` (EINTR) or ``error``, else it is a KVM_EXIT_*."""
    if name in {"restart", "error"}:
        return {"errno": ERRNOS.get(number) or ("EINTR" if name == "restart" else "an error")}
    return {"reason": abs(int(number))}


Parts = tuple[int, int, int, "int | None"]
"""Thread, CPU, word, and the vCPU's number if it is told."""


def parts_of(lead: str, event: str) -> Parts | None:
    """What an event in pieces says, which is no entry to leave at once."""
    match = PIECES.match(lead + event)
    if match is None:
        return None
    word, on, entered, exited, why, name, code = match.groups()
    cpu = int(on)
    if entered:
        return int(word), cpu, entry_word(cpu, immediate=False), int(entered)
    if exited:
        return int(word), cpu, exit_word(cpu, why), int(exited)
    outcome = outcome_of(name, code)
    return int(word), cpu, user_exit_word(cpu, outcome.get("reason"), outcome.get("errno", "")), None


def pieces_of(block: str) -> EventPieces:
    """The events and changes of a block put together."""
    made = PieceMaker(plain_of)
    lanes: dict[EventKey, tuple[Lane, int, int]] = {}
    leads: dict[str, str | None] = {}
    times, cpus, length = made.times, made.cpus, 0
    for lead, stamp, entered, how, left, text in ROW.findall(block):
        if text or not lead:
            match = CHANGE.fullmatch(text)
            if match is None:
                made.other()
                continue
            if len(match[2]) != length:
                made.end()
                length = made.length = len(match[2])
            if match[1] not in leads:
                leads[match[1]] = _thread_of(match[1], match[2])
            thread = leads[match[1]]
            if thread is None:
                made.other()
            else:
                made.change((thread, *match.groups()[1:]))
            continue
        if len(stamp) != length:
            made.end()
            length = made.length = len(stamp)
        key = lead, entered or left
        found = lanes.get(key)
        if found is None:
            parts = parts_of(*key)
            if parts is None:
                made.other()
                continue
            found = lanes[key] = made.lane(parts[0]), parts[2], parts[1]
        if how and IMMEDIATE_EXIT in how:
            made.other()
            continue
        lane, word, cpu = found
        time = float(stamp)
        lane.rows.append(len(times))
        lane.times.append(time)
        lane.words.append(word)
        times.append(time)
        cpus[cpu] = time
    return made.made(list(lanes))


def _thread_of(lead: str, stamp: str) -> str | None:
    """The thread that stands before a stamp, if ``read_prefix`` says the same, and nothing else may be meant."""
    match = FTRACE.match(f"{lead}{stamp}: tracing_mark_write: ")
    if match is None or match[3] != stamp or any(word in lead for word in ODD):
        return None
    return match[1]
