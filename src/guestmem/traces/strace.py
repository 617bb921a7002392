"""strace's ioctl lines: ``strace -f -ttt -T -yy -e trace=ioctl`` and all variants of its prefix.

``KVM_SET_USER_MEMORY_REGION`` is decoded since 2018 (strace ``kvm.c``): slot and size decimal, addresses hex, flags by
name. ``KVM_SET_USER_MEMORY_REGION2`` is shown as a bare pointer by every strace so far: then only the VMM's own trace
can tell, and the reader says so. Calls that strace split into ``<unfinished ...>`` and ``resumed`` are put together
again; such a change counts from when it returned.

A vCPU is inside the guest while its thread is in ``KVM_RUN``: from the stamp of the line to its end, which is the
stamp plus the duration (``-T``), or the stamp of the ``resumed`` line. A ``KVM_RUN`` on one line without a duration
lasts until the thread's next line. In a file with split calls it lasts until the next line of any thread, since
strace would have split it otherwise.
"""

from __future__ import annotations

import errno
import functools
import re
from array import array
from typing import TYPE_CHECKING

from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["StraceReader"]

NAME = "KVM_SET_USER_MEMORY_REGION"
FLAGS = {
    "KVM_MEM_LOG_DIRTY_PAGES": KVM_MEM_LOG_DIRTY_PAGES,
    "KVM_MEM_READONLY": KVM_MEM_READONLY,
    "KVM_MEM_GUEST_MEMFD": 4,
}
PID_MAX_LIMIT = 1 << 22

LINE = re.compile(
    r"(?:\s*\[pid\s+(?P<bracket>\d+)(?:<[^>]*>)?\]|(?P<pid>\d+)(?:<[^>]*>)?(?![\d.:]))?"
    r"(?P<space>\s*)(?P<time>\d\d:\d\d:\d\d(?:\.\d+)?|\d+(?:\.\d+)?)?\s*(?:\(\+\s*\d+(?:\.\d+)?\)\s*)?"
    r"(?P<call>[a-z_][a-z0-9_]*\(.*|<\.\.\. .*|---.*|\+\+\+.*)$",
    re.DOTALL,
)
CALL = re.compile(r"ioctl\((?P<fd>-?\d+|0x[0-9a-f]+)(?:<(?P<decoration>.*?)>)?, (?P<request>.*)$", re.DOTALL)
RESULT = re.compile(
    r"\)\s+= (?P<ret>-?\d+|0x[0-9a-f]+|\?)(?:<.*?>)?(?: (?P<errno>E[A-Z0-9]+)\b)?"
    r"(?: \((?:(?P<exit>KVM_EXIT_\w+)|.*?)\))?(?: <(?P<duration>\d+\.\d+)>)?\s*$"
)
SET_REGION = re.compile(rf"(?:{NAME}\b|0x4020ae46\b(?: /\* {NAME} \*/)?)")
SET_REGION2 = re.compile(
    rf"(?:{NAME}2\b|0x40a0ae49\b(?: /\*.*?\*/)?|_IOC\(_IOC_WRITE, 0xae, 0x49, 0xa0\))(?P<decoded>, \{{)?"
)
RUN = re.compile(r"KVM_RUN\b|0xae80\b|_IOC\(_IOC_NONE, 0xae, 0x80, 0\)")
CREATE_VM = re.compile(r"KVM_CREATE_VM\b|0xae01\b")
CREATE_VCPU = re.compile(r"KVM_CREATE_VCPU, (\d+|0x[0-9a-f]+)\)")
REGION = re.compile(
    r", \{slot=(\w+), flags=([^,]*), guest_phys_addr=(\w+), memory_size=(\w+), userspace_addr=(\w+)(?:, [^}]*)?\}\) "
)
VCPU_DECORATION = re.compile(r"kvm-vcpu:(\d+)")
STACK = re.compile(r" > \S.*\) ?\[0x[0-9a-f]+\]|  ?> ?(?:unexpected_backtracing_error|\S+ \[0x)")
"""A line of the stack that ``-k`` prints below each call."""
UNFINISHED = re.compile(r"\s*<unfinished \.\.\.>\s*$")
RESUMED = re.compile(r"<\.\.\. ioctl resumed>\s*", re.DOTALL)


class _Call:
    """An ioctl of which the end is still to come."""

    __slots__ = ("began", "line", "running", "text")

    def __init__(self, line: int, text: str, began: float | None, *, running: bool) -> None:
        self.line, self.text, self.began, self.running = line, text, began, running


class _Runs:
    """KVM_RUN calls of one thread: begin, end, and the end if no other thread's line can lie inside."""

    __slots__ = ("begins", "ends", "first", "results", "sole_ends")

    def __init__(self, first: float) -> None:
        self.begins, self.ends, self.sole_ends = array("d"), array("d"), array("d")
        self.results: list[tuple[str | None, str]] = []
        """Exit and error of each call, as far as they are shown."""
        self.first = first
        """When the thread's first line was stamped."""


class StraceReader:
    """Reads strace's lines; see the module."""

    name = "strace"
    events = "strace's ioctl(…, KVM_SET_USER_MEMORY_REGION, …) or KVM_RUN (-e trace=ioctl)"

    __slots__ = (
        "_clock",
        "_day",
        "_ended_vms",
        "_fds",
        "_first",
        "_last",
        "_open",
        "_open_changes",
        "_open_runs",
        "_recording",
        "_relative",
        "_runs",
        "_saw_split",
        "_sole",
        "_vcpu_fds",
        "_vm",
    )

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._vm = recording.vm
        self._fds: dict[int, int] = {}
        """VM file descriptors with changes, and the line of the first."""
        self._ended_vms: dict[int, int] = {}
        """VM file descriptors that were given out again, and the line."""
        self._vcpu_fds: dict[int, tuple[int, int]] = {}
        """vCPU file descriptor to (VM's file descriptor, number of the vCPU)."""
        self._open: dict[int, _Call] = {}
        self._runs: dict[int, _Runs] = {}
        self._first: dict[int, float] = {}
        """Stamp of each thread's first line."""
        self._open_runs: set[int] = set()
        """Threads whose last KVM_RUN has no end yet, since its line gave no duration."""
        self._open_changes: dict[int, int] = {}
        """Thread to index of its last change, if that was on one line without a duration: it ends before the next."""
        self._sole: int | None = None
        """The thread among them whose line was the last of the file so far."""
        self._saw_split = False
        self._day = self._relative = 0.0
        self._clock = ""
        self._last: float | None = None

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is a change, or says when a vCPU was inside."""
        match = LINE.match(text)
        if match is None:
            if text.startswith(" > ") and STACK.match(text):
                self._recording.slow = "strace -k"
                return True
            if f", {NAME}" in text and "ioctl(" in text and self._recording.wants_changes and '"' not in text:
                self._recording.bad_line("neither process, time nor call can be read", number, text)
            return False
        bracket, pid, space, clock, call = match.groups()
        thread = int(bracket or pid or 0)
        if thread >= PID_MAX_LIMIT and clock is None and not bracket:  # seconds, and no process before them
            thread, clock = 0, pid
        time = self._time(clock, space) if clock else None
        if time is not None:
            if thread not in self._first:
                self._first[thread] = time
            if self._sole is not None or self._open_runs:
                self._end_open_runs(thread, time)
            if self._open_changes:
                self._end_open_changes(thread, time)
        if call.startswith("ioctl("):
            if "<unfinished ...>" in call:
                self._saw_split = True
                call = UNFINISHED.sub("", call)
                running = self._begins_run(thread, call, time)
                if not running and "KVM_" not in call and "_IOC" not in call and "0x40" not in call:
                    return False
                self._open[thread] = _Call(number, call, time, running=running)
                return running
            return self._call(number, text, call, thread, time, time, None)
        if call.startswith("<... ioctl"):
            opened = self._open.pop(thread, None)
            if opened is None:
                return False
            if opened.running:
                if time is not None:
                    runs = self._runs[thread]
                    runs.ends.append(time)
                    runs.sole_ends.append(time)
                    runs.results.append(_exit_of(RESULT.search(call)))
                return True
            whole = opened.text + RESUMED.sub("", call)
            return self._call(opened.line, whole, whole, thread, opened.began, opened.began, time)
        return False

    def finish(self) -> None:
        """Refuse what is still open, and hand over the stretches in KVM_RUN."""
        recording = self._recording
        if recording.wants_changes:
            for opened in self._open.values():
                if SET_REGION.search(opened.text) and not opened.running:
                    recording.bad_line("the call never returned in this trace: truncated?", opened.line, opened.text)
            if self._vm is not None and self._fds and self._vm not in self._fds:
                message = f"no memslot change on fd {self._vm}; there are some on {_fds(self._fds)}"
                recording.bad_line(message, 0, "")
        run = recording.run
        for thread, runs in self._runs.items():
            run.known_from(thread, runs.first)
            run.source = "KVM_RUN in strace"
            ends = runs.sole_ends if self._saw_split else runs.ends
            for i, begin in enumerate(runs.begins):
                run.run_begin(thread, begin)
                if i < len(ends):
                    reason, error = runs.results[i] if i < len(runs.results) else (None, "")
                    run.run_end(thread, ends[i], reason=reason, errno=error)

    def _call(
        self,
        number: int,
        text: str,
        call: str,
        thread: int,
        time: float | None,
        began: float | None,
        ended: float | None,
    ) -> bool:
        """Take one whole ioctl."""
        match = CALL.match(call)
        if match is None:
            return self._refuse_if_change(number, text)
        request = match["request"]
        if RUN.match(request):
            self._whole_run(thread, call, match, time)
            return True
        if (change := SET_REGION.match(request)) is not None or SET_REGION2.match(request):
            return self._change(number, text, match, change is None, thread, time, began, ended)
        if vcpu := CREATE_VCPU.match(request):
            result = RESULT.search(call)
            if result and result["ret"].isdigit():
                self._vcpu_fds[int(result["ret"])] = int(match["fd"], 0), int(vcpu[1], 0)
                if time is not None and self._recording.vm in (None, int(match["fd"], 0)):
                    self._recording.run.created(int(vcpu[1], 0), time)
        elif CREATE_VM.match(request):
            result = RESULT.search(call)
            if result and result["ret"].isdigit() and int(result["ret"]) in self._fds:
                self._ended_vms[int(result["ret"])] = number
        return self._refuse_if_change(number, text) if request.startswith(NAME) else False

    def _refuse_if_change(self, number: int, text: str) -> bool:
        if f", {NAME}" in text and self._recording.wants_changes:
            self._recording.bad_line(f"{NAME}: its arguments cannot be read", number, text)
        return False

    def _change(
        self,
        number: int,
        text: str,
        match: re.Match[str],
        version2: bool,
        thread: int,
        time: float | None,
        began: float | None,
        ended: float | None,
    ) -> bool:
        """Take one KVM_SET_USER_MEMORY_REGION."""
        recording = self._recording
        if not recording.wants_changes:
            return False
        result = RESULT.search(match["request"])
        if result is not None and result["ret"] == "?":  # the process died in the call
            return False
        fd = int(match["fd"], 0)
        if not self._is_chosen(fd, number, text):
            return False
        region = REGION.search(match["request"])
        flags = _flags(region[2]) if region else None
        if region is None or result is None or flags is None:
            if version2 and (result is None or not result["errno"]):
                recording.bad_line(
                    f"strace does not decode {NAME}2, so it cannot show this VM's memslots; "
                    "record the VMM's own trace (QEMU: -trace kvm_set_user_memory)",
                    number,
                    text,
                )
            if version2:
                return False
            recording.bad_line(f"{NAME}: its arguments or result cannot be read", number, text)
        try:
            slot, gpa, size, hva = map(_number, region.group(1, 3, 4, 5))
        except ValueError:
            recording.bad_line(f"{NAME}: a field is not a number", number, text)
        if ended is None and result["duration"] and began is not None:
            ended = began + float(result["duration"])
        ret = int(result["ret"], 0)
        if ret < 0:
            ret = -int(getattr(errno, result["errno"] or "", 1))
        recording.claim(self.name, number, text)
        recording.replay.change(
            number,
            text.strip(),
            slot=slot,
            flags=flags,
            gpa=gpa,
            size=size,
            hva=hva,
            ret=ret,
            time=time,
            thread=thread or None,
            began=began,
            ended=ended,
        )
        if ended is None and time is not None:
            self._open_changes[thread] = len(recording.replay.changes) - 1
        return True

    def _is_chosen(self, fd: int, number: int, text: str) -> bool:
        """Whether this change is of the VM to read; raises TraceError if there are two and none was chosen."""
        self._fds.setdefault(fd, number)
        if self._vm is None:
            self._vm = fd
        if fd != self._vm:
            if self._recording.vm is None:
                self._recording.bad_line(
                    f"memslots of two VMs, fd {self._vm} and fd {fd}: choose one with --vm {self._vm} or --vm {fd}",
                    number,
                    text,
                )
            return False
        if fd in self._ended_vms:
            self._recording.bad_line(
                f"memslots of two VMs one after the other, both on fd {fd} (the second was created in line "
                f"{self._ended_vms[fd]}): give a trace of one",
                number,
                text,
            )
        return True

    def _time(self, clock: str, space: str) -> float:
        """Seconds of the stamp: since 1970 (``-ttt``), since the first midnight (``-t``), or summed up (``-r``)."""
        if ":" in clock:
            time = int(clock[:2]) * 3600 + int(clock[3:5]) * 60 + float(clock[6:]) + self._day
            if self._last is not None and time < self._last - 43200:
                self._day += 86400.0
                time += 86400.0
        else:
            time = float(clock)
            if len(space) >= 5 and time < 1e8:  # -r pads the seconds since the last call to six places
                self._relative += time
                time = self._relative
        self._last = time if self._last is None or time > self._last else self._last
        self._recording.run.saw(time)
        return time

    def _begins_run(self, thread: int, call: str, time: float | None) -> bool:
        """Note the begin of a KVM_RUN; False if the call is none."""
        match = CALL.match(call)
        if match is None or not RUN.match(match["request"]):
            return False
        if self._is_our_vcpu(thread, match) and time is not None:
            self._runs_of(thread).begins.append(time)
            return True
        return False

    def _runs_of(self, thread: int) -> _Runs:
        runs = self._runs.get(thread)
        if runs is None:
            runs = self._runs[thread] = _Runs(self._first[thread])
        return runs

    def _whole_run(self, thread: int, call: str, match: re.Match[str], time: float | None) -> None:
        if time is None or not self._is_our_vcpu(thread, match):
            return
        runs = self._runs_of(thread)
        runs.begins.append(time)
        result = RESULT.search(call)
        runs.results.append(_exit_of(result))
        if result and result["duration"]:
            end = time + float(result["duration"])
            runs.ends.append(end)
            runs.sole_ends.append(end)
        else:
            self._open_runs.add(thread)
            self._sole = thread

    def _end_open_runs(self, thread: int, time: float) -> None:
        if self._sole is not None:
            self._runs[self._sole].sole_ends.append(time)
            self._sole = None
        if thread in self._open_runs:
            self._runs[thread].ends.append(time)
            self._open_runs.discard(thread)

    def _end_open_changes(self, thread: int, time: float) -> None:
        """Changes without duration had returned when this line began: the thread's, or, if strace splits calls, all."""
        changes = self._recording.replay.changes
        for each in list(self._open_changes) if self._saw_split else [thread] if thread in self._open_changes else []:
            index = self._open_changes.pop(each)
            changes[index] = changes[index]._replace(ended=time)

    def _is_our_vcpu(self, thread: int, match: re.Match[str]) -> bool:
        """Whether this KVM_RUN is of the chosen VM, as far as is known; notes the vCPU's number."""
        owner = self._vcpu_fds.get(int(match["fd"], 0))
        if owner is not None:
            if self._recording.vm is not None and owner[0] != self._recording.vm:
                return False
            self._recording.run.number(thread, owner[1])
        elif match["decoration"] and (index := VCPU_DECORATION.search(match["decoration"])):
            self._recording.run.number(thread, int(index[1]))
        return True


def _exit_of(result: re.Match[str] | None) -> tuple[str | None, str]:
    """Why KVM_RUN returned, as ``-e kvm=vcpu`` shows it, and its error; None and "" for what is not shown."""
    if result is None:
        return None, ""
    return result["exit"], result["errno"] or ""


def _number(text: str) -> int:
    """Decimal or hex, or NULL. Raises ValueError."""
    return 0 if text == "NULL" else int(text, 0)


@functools.lru_cache(maxsize=64)
def _flags(text: str) -> int | None:
    """Flags as strace prints them, by name, as a number with a comment, or both; None if a name is unknown."""
    flags = 0
    for word in re.sub(r"/\*.*?\*/", "", text).split("|"):
        name = word.strip()
        try:
            flags |= FLAGS[name] if name in FLAGS else int(name, 0)
        except ValueError:
            return None
    return flags


def _fds(fds: dict[int, int]) -> str:
    return ", ".join(f"fd {fd}" for fd in sorted(fds))
