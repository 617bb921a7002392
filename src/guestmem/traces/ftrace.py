"""KVM's tracepoints as ftrace (``trace``, ``trace_pipe``), ``trace-cmd report`` and ``perf script`` print them.

Linux has no tracepoint for memslots; these tell where a vCPU was: ``kvm_entry``, ``kvm_exit`` and
``kvm_userspace_exit`` (Linux ``include/trace/events/kvm.h``, ``arch/x86/kvm/trace.h``), and the system call ``ioctl``
(``syscalls:sys_enter_ioctl``, ``sys_exit_ioctl``) with KVM_RUN. Record all three: between an exit and the next entry
KVM works for the vCPU and looks at memslots too. What stands before an event: ``prefix``. What says that events are
missing: ``[LOST EVENTS]`` of the kernel, ``[EVENTS DROPPED]`` of trace-cmd, PERF_RECORD_LOST and the closing words of
perf, and the header of a buffer that overwrote its oldest events.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from . import prefix as columns
from .ftrace_block import COLUMNS, ERRNOS, IMMEDIATE_EXIT, LOST_WORDS, PIECES, ROW, outcome_of, parts_of
from .lines import line_of
from .qemu_events import carry_out, is_one_vm, threads_of
from .qemu_prefix import TICKS
from .recorder import entry_word, exit_word, user_exit_word
from .requests import integer, request_name

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from .event_pieces import EventChanges
    from .recording import Other, Recording, Rows
    from .whereabouts import Track

    _Lane = tuple[Track, array[float], Callable[[float], None], Callable[[int], None], int, int]

__all__ = ["FtraceReader"]

FAST = re.compile(COLUMNS + r"(kvm_entry|kvm_exit|kvm_userspace_exit): +")
"""An event as all three print it by default."""
EVENT = re.compile(r"(?:^|[\s:])(kvm_entry|kvm_exit|kvm_userspace_exit)(?::|(?=\())")
SYSCALL = re.compile(r"(?:^|[\s:])(sys_enter_ioctl: |sys_exit_ioctl: |sys_ioctl\(|sys_ioctl -> )")
IMMEDIATE = re.compile(r"\[immediate exit\]|\bimmediate_exit=(?:0x0*)?[1-9]")
"""The vCPU is thrown out before its first instruction: as the tracepoint prints it, and raw."""
MOST_LANES = 1 << 14
CMD = re.compile(r"\bcmd: (?:0x)?([0-9a-f]{1,16})\b")
INDEX = re.compile(r"\s*(?:vcpu |vcpu_id=)(\d{1,6}),?")
REASON = re.compile(r"\s*(?:vcpu \d{1,6},? )?(?:reason )?([A-Za-z_][\w-]*)(?![\w=])")
USER_REASON = re.compile(r"\s*reason (?:KVM_EXIT_)?(?P<name>\w+) \((?P<number>-?\d{1,10})\)")
RAW_USER_REASON = re.compile(r"\s*reason=(?P<number>\w{1,10})(?: errno=(?P<errno>-?\w{1,11}))?")
LOST = re.compile(
    r"(?:CPU:?\s{0,8}(?P<cpu>\d{1,5}):?\s{0,8})?(?:"
    r"\[?LOST (?:\d{1,20} )?(?i:EVENTS?)\b|\[?(?:\b\d{1,20} )?(?i:EVENTS? (?:DROPPED|LOST))\b"
    r"|PERF_RECORD_LOST(?:_SAMPLES)?\b|PERF_RECORD_THROTTLE\b"
    r"|Processed \d{1,20} (?:events|samples) and lost [1-9.]|[([ ]lost [1-9]\d{0,19} (?:events|samples|chunks)\b"
    r"|(?:commit )?overrun: {0,20}[1-9]|dropped events: {0,20}[1-9])"
)
"""A recorder lost events: the kernel's and trace-cmd's markers, perf's records and closing words, and the counts of
``per_cpu/cpu*/stats`` and ``trace-cmd report --stat`` (which say overrun where the oldest were overwritten)."""
STARTED = re.compile(r"#+ CPU (\d{1,5}) buffer started #+")
WRITTEN = re.compile(r"#\s*entries-in-buffer/entries-written:\s*(\d{1,20})/(\d{1,20})")
FAILED = re.compile(r"(-\d{1,4}|0xffff[0-9a-f]{4,12})\s*$")


class FtraceReader:
    """Reads kvm_entry, kvm_exit, kvm_userspace_exit and ioctl; see the module."""

    name = "ftrace"
    events = "kvm_entry, kvm_exit or kvm_userspace_exit (ftrace, trace-cmd, perf script)"

    pattern = ROW

    __slots__ = ("_digits", "_in_run", "_known", "_known_at", "_lanes", "_length", "_lost", "_recording", "_version")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._digits = 0
        self._in_run: set[int] = set()
        """Threads in a KVM_RUN that the tracepoints of system calls told of."""
        self._lanes: dict[tuple[str, str], _Lane] = {}
        """Where events are kept, and as what word, by what stands before the stamp and behind it."""
        self._known: set[tuple[str, str]] = set()
        """What may be in pieces, while the recorder's version is ``_known_at``."""
        self._known_at = 0
        self._length = 0
        """How many characters the last stamp had."""
        self._version = 0
        """What the recorder's was when the lanes were found."""
        self._lost: list[int] = []
        """Lines that say that events were lost, as many as are told."""

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is one of the events."""
        fast = FAST.match(text)
        if fast is not None:
            thread, cpu, stamp, name = fast.groups()
            self._digits = max(self._digits, len(stamp) - stamp.index(".") - 1)
            self._event(name, text, fast.end(), int(thread), float(stamp), int(cpu))
            return True
        if "kvm_" in text and (event := EVENT.search(text)) is not None:
            return self._slow(number, text, event)
        if "ioctl" in text and (call := SYSCALL.search(text)) is not None:
            return self._syscall(number, text, call)
        self._other_line(number, text)
        return False

    @property
    def is_curious(self) -> bool:
        """What is left of each CPU is told by any line, if the oldest were overwritten."""
        return self._recording.run.overwritten

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """Take a block of lines as ROW found them."""
        texts: list[str] = []
        run = self._recording.run
        last_on, limit, length, lanes = run.last_on, run.next_mark, self._length, self._lanes
        first, last = math.inf, -math.inf
        for at, (lead, stamp, entered, how, left, text) in enumerate(rows, number):
            lane = lanes.get((lead, entered or left))
            if lane is not None and len(stamp) == length and not (how and IMMEDIATE_EXIT in how):
                time = float(stamp)
                if time <= limit:
                    track, times, add_time, add_word, cpu, event = lane
                    add_time(time)
                    add_word(event)
                    last_on[cpu] = time
                    if len(times) > track.full:
                        track.forget()
                    if time < first:
                        first = time
                    if time > last:
                        last = time
                    continue
            if last > -math.inf:
                run.passed(first, last)
                first, last = math.inf, -math.inf
            if not lead:
                other(at, line_of(text))
            else:
                if len(stamp) != length:
                    length = self._length = len(stamp)
                    self._digits = max(self._digits, length - stamp.index(".") - 1)
                immediate = bool(how) and IMMEDIATE_EXIT in how
                if not self._piece(lead, entered or left, float(stamp), immediate=immediate):
                    texts = texts or block.split("\n")
                    other(at, line_of(texts[at - number]))
            limit = run.next_mark
            if run.version != self._version:
                lanes.clear()
                self._version = run.version
        if last > -math.inf:
            run.passed(first, last)
        return 0

    begins_need_ends = False

    @property
    def state(self) -> tuple[int, int]:
        """See ``event_pieces``."""
        return self._recording.run.version, self._length or -1

    def has_lane(self, key: tuple[str, str]) -> bool:
        """Whether all that such an event says, but for when it was, is known."""
        run = self._recording.run
        if run.version != self._known_at:
            self._known.clear()
            self._known_at = run.version
        if key in self._known:
            return True
        parts = parts_of(*key)
        if parts is None or not run.says_no_more(*parts):
            return False
        if len(self._known) < MOST_LANES:
            self._known.add(key)
        return True

    def may_take(self, changes: EventChanges) -> bool:
        """See ``event_pieces``."""
        recording = self._recording
        if recording.tells_calls or recording.run.overwritten or changes.outside:
            return False
        return is_one_vm(recording, threads_of(changes))

    def carry_out(self, number: int, changes: EventChanges) -> int:
        """See ``event_pieces``."""
        self._recording.changes_in_ftrace = True
        return carry_out(self._recording, number, changes)

    def _piece(self, lead: str, event: str, time: float, *, immediate: bool) -> bool:
        """Take an event in pieces, and find the lane for more of it; False if it needs a closer look."""
        match = PIECES.match(lead + event)
        if match is None:
            return False
        run = self._recording.run
        word, on, entered, exited, why, name, code = match.groups()
        thread, cpu = int(word), int(on)
        if entered:
            run.entry(thread, time, cpu, index=int(entered), immediate=immediate)
            kept = entry_word(cpu, immediate)
        elif exited:
            run.exit(thread, time, cpu, index=int(exited), reason=why)
            kept = exit_word(cpu, why)
        else:
            outcome = outcome_of(name, code)
            run.user_exit(thread, time, cpu, **outcome)
            kept = user_exit_word(cpu, outcome.get("reason"), outcome.get("errno", ""))
        track = run.lane(thread, cpu)
        if track is not None and not immediate and len(self._lanes) < MOST_LANES:
            self._lanes[lead, event] = track, track.times, track.times.append, track.words.append, cpu, kept
        return True

    def finish(self) -> None:
        """Say where the run state is from."""
        run = self._recording.run
        if kinds := run.recorded:
            run.source = run.source or " and ".join(kinds)
        if self._recording.changes_in_ftrace:
            for number in self._lost:
                self._recording.lost_changes("events were lost", number)
        if self._digits:
            run.resolution = columns.resolution_of(self._digits)

    def _slow(self, number: int, text: str, event: re.Match[str]) -> bool:
        name = event[1]
        if "kvm_set_user_memory" in text[: event.start()]:
            return False  # two lines in one, the first of them QEMU's
        found = columns.parse(text[: event.start(1)])
        if found is None or found.time is None:
            if '"' in text[: event.start()] or "-e " in text[: event.start()]:
                return False  # a command line
            if text[event.end() - 1] == "(":
                return False  # perf trace's
            self._recording.bad_line(f"{name}: no thread and time before it", number, text)
        if not found.seconds:
            self._recording.note(TICKS, number)
            return True
        index = INDEX.match(text, event.end())
        thread = found.thread
        if thread is None:
            if index is None:
                message = f"{name} without thread or vCPU number, which proves nothing (perf script: -F +tid)"
                self._recording.note(message, number)
                return True
            thread = -1 - int(index[1])
        if not self._recording.machines.is_chosen(found.process, thread):
            return True
        self._digits = max(self._digits, found.digits)
        self._event(name, text, event.end(), thread, found.time, found.cpu)
        return True

    def _event(self, name: str, text: str, at: int, thread: int, time: float, cpu: int | None) -> None:
        """One of the three, whose fields begin at ``at``."""
        run = self._recording.run
        if name == "kvm_userspace_exit":
            self._user_exit(text, at, thread, time, cpu)
            return
        index = INDEX.match(text, at)
        number = int(index[1]) if index else None
        if name == "kvm_entry":
            run.entry(thread, time, cpu, index=number, immediate=IMMEDIATE.search(text, at) is not None)
        else:
            reason = REASON.match(text, index.end() if index else at)
            run.exit(thread, time, cpu, index=number, reason=reason[1] if reason else "")

    def _user_exit(self, text: str, at: int, thread: int, time: float, cpu: int | None) -> None:
        """Linux ``include/trace/events/kvm.h``: a negative errno prints ``restart`` (EINTR) or ``error``."""
        run = self._recording.run
        match = USER_REASON.match(text, at)
        if match is None:
            raw = RAW_USER_REASON.match(text, at)
            if raw is None or (raw["errno"] or "0") != "0":
                run.user_exit(thread, time, cpu, errno="" if raw is None else ERRNOS.get(raw["errno"], "an error"))
            else:
                run.user_exit(thread, time, cpu, reason=_reason_number(raw["number"]))
        else:
            run.user_exit(thread, time, cpu, **outcome_of(match["name"], match["number"]))

    def _syscall(self, number: int, text: str, call: re.Match[str]) -> bool:
        """An ioctl begins or ends; which one it was, only the begin tells."""
        found = columns.parse(text[: call.start(1)])
        if found is None or found.time is None or found.thread is None or not found.seconds:
            return False
        run, thread, time = self._recording.run, found.thread, found.time
        if call[1] in {"sys_exit_ioctl: ", "sys_ioctl -> "}:
            if thread not in self._in_run:
                return False
            self._in_run.discard(thread)
            failed = FAILED.match(text, call.end())
            run.run_end(thread, time, errno="" if failed is None else _errno(failed[1]))
            return True
        cmd = CMD.search(text, call.end())
        name = request_name(int(cmd[1], 16)) if cmd else ""
        if name.startswith("KVM_SET_USER_MEMORY_REGION"):
            message = "a memslot change, of which a system call's tracepoint does not show the slot"
            self._recording.note(message, number)
        if name != "KVM_RUN" or not self._recording.machines.is_chosen(found.process, thread):
            return False
        self._digits = max(self._digits, found.digits)
        self._in_run.add(thread)
        run.run_begin(thread, time)
        run.source = "KVM_RUN in the tracepoints of ioctl"
        return True

    def _other_line(self, number: int, text: str) -> None:
        """Note what a line that is none of the events says of what is missing."""
        run = self._recording.run
        if any(word in text for word in LOST_WORDS) and (lost := LOST.search(text)):
            cpu = lost["cpu"]
            if cpu is None and (found := columns.parse(text[: lost.start()])) and found.cpu is not None:
                cpu = str(found.cpu)
            run.lost(None if cpu is None else int(cpu), lost[0])
            self._lost.append(number)
        elif text.startswith("#"):
            if ((written := WRITTEN.match(text)) and int(written[1]) < int(written[2])) or STARTED.match(text):
                if not run.overwritten:
                    self._lost.append(number)
                run.overwritten = True
        elif run.overwritten and "[" in text and (match := SEEN.match(text)):
            run.saw(float(match[2]), int(match[1]))


SEEN = re.compile(r" *[^\[\n]{1,48}?\[(\d{1,5})\] +(?:[^\s\d]\S{2,7} +)?(\d{1,12}\.\d{6,9}): +")


def _errno(text: str) -> str:
    """The name of a negative result, as a decimal or as 64 bits."""
    value = int(text) if text.startswith("-") else int(text[-4:], 16) - (1 << 16)
    return ERRNOS.get(str(value), "an error")


def _reason_number(text: str) -> int | None:
    try:
        return integer(text)
    except ValueError:
        return None
