"""strace's ioctl lines: ``strace -f -ttt -T -yy -e trace=ioctl`` and every variant of them.

``KVM_SET_USER_MEMORY_REGION`` is decoded since 2018 (strace ``kvm.c``): slot and size decimal, addresses hex, flags by
name. ``KVM_SET_USER_MEMORY_REGION2`` is shown as a bare pointer by every strace so far: then only the VMM's own trace
or a recording by bpftrace can tell, and the reader says so. Calls that strace split into ``<unfinished ...>`` and
``resumed`` are put together again. What a line looks like under which option: ``strace_line``.

A KVM_RUN has not begun before the stamp of its line, and has returned at that stamp plus the duration (``-T``), or at
the stamp of the ``resumed`` line. One on a single line without a duration has returned at the thread's next line; in a
file with split calls, at the next line of any thread, since strace would have split it otherwise. With
``-e kvm=vcpu`` the line says with which exit.
"""

from __future__ import annotations

import errno
import functools
import re
from typing import TYPE_CHECKING

from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from .columns import NO_THREAD
from .evidence import Irqchip
from .prefix import resolution_of
from .requests import integer, request_name
from .strace_line import ARGUMENTS, LEADER, REGION, RESULT, Clock, request_of

if TYPE_CHECKING:
    from .recording import Recording
    from .strace_line import Request

__all__ = ["StraceReader"]

NAME = "KVM_SET_USER_MEMORY_REGION"
FLAGS = {
    "KVM_MEM_LOG_DIRTY_PAGES": KVM_MEM_LOG_DIRTY_PAGES,
    "KVM_MEM_READONLY": KVM_MEM_READONLY,
    "KVM_MEM_GUEST_MEMFD": 4,
}
PID_MAX_LIMIT = 1 << 22
FAST_RUN = re.compile(
    r"(\d{1,7}) {1,6}(\d{9,12}\.\d{6,9}) ioctl\((\d{1,6})(?:<[^>\n]{0,80}>)?, KVM_RUN, 0\) {1,80}= "
    r"(?:-1 (E[A-Z]{1,20}) \([^)\n]{0,80}\)|0(?: \((KVM_EXIT_\w{1,40})\))?) <(\d{1,9}\.\d{1,9})>\n?$"
)
"""A KVM_RUN as ``strace -f -ttt -T -o FILE`` prints it: the one line that a recording has by the million."""
VCPU_DECORATION = re.compile(r"kvm-vcpu:(\d{1,6})")
INDEX = re.compile(r", (?:argp=|arg=)?(\d{1,6}|0x[0-9a-f]{1,6})\)")
ATTACHED = re.compile(r"(?:strace: )?Process (\d{1,10}) attached")
UNFINISHED = re.compile(r"\s{0,8}<(?:unfinished|detached) \.\.\.>\s{0,8}$")
RESUMED = re.compile(r"<\.\.\. ioctl resumed> ?")
EXIT_REASON = re.compile(r"KVM_EXIT_\w{1,40}")


class _Call:
    """An ioctl of which the end is still to come."""

    __slots__ = ("began", "detached", "line", "name", "text")

    def __init__(self, line: int, text: str, began: float | None, name: str, *, detached: bool) -> None:
        self.line, self.text, self.began, self.name, self.detached = line, text, began, name, detached


class _Result:
    """What stands behind ``=``; ``ret`` is None for ``?``."""

    __slots__ = ("comment", "duration", "errno", "ret")

    def __init__(self, match: re.Match[str]) -> None:
        self.ret = None if match["ret"] == "?" else integer(match["ret"])
        self.errno = match["errno"] or ""
        self.comment = match["comment"] or ""
        duration = match["duration"]
        self.duration = None if duration is None or duration == "unavailable" else float(duration)


class StraceReader:
    """Reads strace's lines; see the module."""

    name = "strace"
    events = "strace's ioctl(…, KVM_SET_USER_MEMORY_REGION, …) or KVM_RUN (-e trace=ioctl)"

    __slots__ = (
        "_alive",
        "_attached",
        "_clock",
        "_first",
        "_irqchips",
        "_known",
        "_open",
        "_open_changes",
        "_open_runs",
        "_recording",
        "_root",
        "_saw_bracket",
        "_saw_split",
        "_sole",
        "_used_root",
        "_vcpu_fds",
    )

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._clock = Clock()
        self._open: dict[int, _Call] = {}
        self._open_runs: dict[int, _Result] = {}
        """Threads whose last KVM_RUN has no end yet, since its line gave no duration; with its result."""
        self._open_changes: dict[int, int] = {}
        """Thread to index of its last change, if that was on one line without a duration: it ends before the next."""
        self._first: dict[int, float] = {}
        """Stamp of each thread's first line."""
        self._sole: int | None = None
        """The thread among them whose line was the last of the file so far."""
        self._saw_split = False
        self._known: set[int] = set()
        """Threads that run a vCPU."""
        self._vcpu_fds: dict[int, tuple[int, int]] = {}
        """vCPU file descriptor to (VM's file descriptor, number of the vCPU)."""
        self._irqchips: dict[int, Irqchip] = {}
        self._alive: dict[int, None] = {}
        """Processes of a recording in which ``[pid N]`` stands only while there are several."""
        self._attached: set[int] = set()
        self._saw_bracket = self._used_root = False
        self._root: int | None = None
        """The process whose lines had no number while it was alone."""

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is a change, or says when a vCPU was inside."""
        fast = FAST_RUN.match(text)
        if fast is not None and not self._open_runs and not self._open_changes:
            return self._fast_run(fast)
        leader = LEADER.match(text)
        if leader is None:
            return self._other(number, text)
        call = text[leader.end() :]
        is_call = call.startswith("ioctl(")
        resumes = not is_call and call.startswith("<... ioctl")
        bracket, pid, stamp = leader["bracket"], leader["pid"], leader["time"]
        if not is_call and not resumes and stamp is None and not bracket and not pid:
            return self._other(number, text)
        if not is_call and not resumes and not _is_call(call):
            return self._other(number, text)
        thread = int(bracket or pid or 0)
        if pid and thread >= PID_MAX_LIMIT and stamp is None:  # seconds, and no process before them
            thread, stamp, pid = 0, pid, None
        space = leader["space"] or ""
        time = self._clock.time(stamp, space, has_pid=bool(bracket or pid), delta=leader["delta"])
        if bracket or (thread == 0 and self._saw_bracket):
            thread = self._bracketed(thread, call)
        elif thread == 0:
            self._used_root = True
        if "<unfinished ...>" in call:
            self._saw_split = True
        if time is not None:
            self._recording.run.saw(time)
            if thread not in self._first:
                self._first[thread] = time
            if self._open_changes:
                self._end_open_changes(thread, time)
            if self._sole is not None or self._open_runs:
                self._end_open_runs(thread, time)
            if thread in self._known and thread not in self._open:
                self._recording.run.elsewhere(thread, time)
        if is_call:
            return self._begins(number, text, call, thread, time)
        if resumes:
            return self._resumes(number, text, call, thread, time)
        if call.startswith("+++"):
            self._alive.pop(thread, None)
        return False

    def finish(self) -> None:
        """Refuse what is still open, and say what is known of the VM."""
        recording = self._recording
        if recording.wants_changes:
            for opened in self._open.values():
                if not opened.name.startswith(NAME):
                    continue
                if opened.detached:
                    recording.note("strace was detached inside a change: whether it was made is not known", opened.line)
                else:
                    message = "the call never returned in this trace: truncated?"
                    recording.bad_line(message, opened.line, opened.text)
        if not self._known and recording.format != self.name:
            return
        self._name_the_root()
        run = recording.run
        if self._known:
            run.source = "KVM_RUN in strace"
        if self._clock.last is not None:
            run.resolution = resolution_of(self._clock.digits)
        if self._clock.last is not None and self._clock.digits == 0:
            recording.note("stamps of whole seconds: they tell the order, not how long anything took", 0)
        key = recording.machines.key
        if isinstance(key, int):
            run.irqchip = self._irqchips.get(key, Irqchip.UNKNOWN)

    def _fast_run(self, match: re.Match[str]) -> bool:
        """A KVM_RUN that is whole: 1 µs of work is done here a million times."""
        thread, stamp, fd, failed, reason, duration = match.groups()
        clock = self._clock
        time = float(stamp)
        if clock.last is None or time > clock.last:
            clock.last = time
        digits = len(stamp) - stamp.index(".") - 1
        if digits > clock.digits:
            clock.digits = digits
        number = int(thread)
        if number not in self._first:
            self._first[number] = time
        if not self._is_ours(number, int(fd), match.string):
            return False
        self._recording.run.whole_run(number, time, time + float(duration), reason, failed or "")
        return True

    def _other(self, number: int, text: str) -> bool:
        """A line that is no system call."""
        if text.startswith((" > ", "> ")):
            self._recording.slow = "strace -k"
            return True
        if match := ATTACHED.match(text):
            self._alive[int(match[1])] = None
            self._attached.add(int(match[1]))
        elif NAME in text and "ioctl(" in text and self._recording.wants_changes and " cmd: " not in text:
            if '"' in text:
                self._recording.note(f"{NAME} is named inside a string, which is not read", number)
            else:
                self._recording.bad_line("neither process, time nor call can be read", number, text)
        return False

    def _bracketed(self, thread: int, call: str) -> int:
        """The thread of a line in a recording that has ``[pid N]`` now and then."""
        if thread:
            if not self._saw_bracket and self._used_root:
                self._alive.setdefault(0)
            self._saw_bracket = True
            if 0 in self._alive and thread not in self._attached:
                self._is_root(thread)
            self._alive[thread] = None
            return thread
        if len(self._alive) == 1:
            return next(iter(self._alive))
        if call.startswith("<...") and len(self._open) == 1:
            return next(iter(self._open))
        return 0

    def _is_root(self, thread: int) -> None:
        """The process whose lines had no number has this one."""
        self._root = thread
        del self._alive[0]
        if 0 in self._open:
            self._open[thread] = self._open.pop(0)
        if 0 in self._open_runs:
            self._open_runs[thread] = self._open_runs.pop(0)
        if self._sole == 0:
            self._sole = thread

    def _name_the_root(self) -> None:
        """Changes of the process whose lines had no number get it."""
        if self._root is None:
            return
        changes = self._recording.machines.replay.changes
        for i, thread in enumerate(changes.thread):
            if thread != NO_THREAD:
                break
            changes.thread[i] = self._root

    def _begins(self, number: int, text: str, call: str, thread: int, time: float | None) -> bool:
        """A line on which an ioctl begins, and ends, unless it is split."""
        match = ARGUMENTS.match(call)
        request = request_of(match["request"]) if match else None
        if match is None or request is None:
            return self._refuse_if_change(number, text)
        name = request.name or request_name(request.number or 0)
        if UNFINISHED.search(call):
            if not name:
                return False
            detached = "<detached" in call[-24:]
            if name.startswith(NAME):
                self._recording.run.change_at(time)
            self._open[thread] = _Call(number, UNFINISHED.sub("", call), time, name, detached=detached)
            if name == "KVM_RUN" and self._is_ours(thread, integer(match["fd"]), call):
                if time is not None:
                    self._recording.run.run_begin(thread, time)
                return True
            return False
        return self._call(number, text, call, match, request, name, thread, time, None)

    def _resumes(self, number: int, text: str, call: str, thread: int, time: float | None) -> bool:
        """A line on which a split ioctl ends."""
        opened = self._open.pop(thread, None)
        if opened is None:
            could_be = any(each.name.startswith(NAME) for each in self._open.values())
            if could_be and self._recording.wants_changes and self._saw_bracket and not thread:
                self._recording.bad_line("which process's call ends here cannot be told", number, text)
            return False
        whole = opened.text + RESUMED.sub("", call)
        match = ARGUMENTS.match(whole)
        request = request_of(match["request"]) if match else None
        if match is None or request is None:
            return self._refuse_if_change(opened.line, whole)
        if opened.name == "KVM_RUN":
            if time is not None and thread in self._known:
                result = _result(whole)
                if result is None:
                    self._recording.run.run_end(thread, time)
                else:
                    self._recording.run.run_end(thread, time, reason=_reason(result), errno=result.errno)
            return True
        return self._call(opened.line, whole, whole, match, request, opened.name, thread, opened.began, time)

    def _call(
        self,
        number: int,
        text: str,
        call: str,
        match: re.Match[str],
        request: Request,
        name: str,
        thread: int,
        began: float | None,
        ended: float | None,
    ) -> bool:
        """Take one whole ioctl."""
        if name == "KVM_RUN":
            self._whole_run(thread, call, integer(match["fd"]), began)
            return True
        if name.startswith(NAME):
            return self._change(number, text, match, request, name, thread, began, ended)
        if not name:
            return self._refuse_if_change(number, text) if NAME in text else False
        result = _result(call)
        if result is None or result.ret is None or result.ret < 0:
            return False
        fd = integer(match["fd"])
        if name == "KVM_CREATE_VM":
            self._created(result.ret, thread, number)
        elif name == "KVM_CREATE_VCPU":
            if index := INDEX.match(match["request"], request.end):
                self._vcpu_fds[result.ret] = fd, integer(index[1])
                if began is not None and self._is_our_vm(fd):
                    self._recording.run.created(integer(index[1]), began)
        elif name == "KVM_CREATE_IRQCHIP":
            self._irqchips[fd] = Irqchip.KERNEL
        elif self._irqchips.get(fd) is Irqchip.USER:  # KVM_ENABLE_CAP, KVM_CREATE_DEVICE: of which kind is not shown
            self._irqchips[fd] = Irqchip.UNKNOWN
        return False

    def _created(self, fd: int, thread: int, number: int) -> None:
        """A VM was made."""
        if fd in self._irqchips and any(vm == fd for vm, _ in self._vcpu_fds.values()):
            self._recording.run.lost(None, f"file descriptor {fd} became another VM's")
            self._vcpu_fds = {vcpu: owner for vcpu, owner in self._vcpu_fds.items() if owner[0] != fd}
        self._irqchips[fd] = Irqchip.USER
        self._recording.machines.names_vms_by("fd")
        self._recording.machines.created(fd, thread or None, number)

    def _refuse_if_change(self, number: int, text: str) -> bool:
        if NAME in text and self._recording.wants_changes and '"' not in text and " cmd: " not in text:
            self._recording.bad_line(f"{NAME}: its arguments cannot be read", number, text)
        return False

    def _change(
        self,
        number: int,
        text: str,
        match: re.Match[str],
        request: Request,
        name: str,
        thread: int,
        began: float | None,
        ended: float | None,
    ) -> bool:
        """Take one KVM_SET_USER_MEMORY_REGION, or its second version."""
        recording = self._recording
        if not recording.wants_changes:
            return False
        call = match["request"]
        result = _result(call)
        if result is not None and result.ret is None:  # the process died in the call
            return False
        arguments = call[request.end :]
        region = REGION.match(arguments, 2) if arguments.startswith(", ") else None
        flags = _flags(region[2]) if region else None
        if region is None and result is not None and re.match(r", (?:arg=|argp=)?(?:0x[0-9a-f]+|NULL)\)", arguments):
            if result.errno:  # refused, whatever it was
                recording.note(f"{name} that failed, of which strace does not show the slot", number)
                return False
            self._only_a_pointer(number, text, name, request)
        if region is None or result is None or result.ret is None or flags is None:
            recording.bad_line(f"{NAME}: its arguments or result cannot be read", number, text)
        try:
            slot, gpa, size, hva = map(_number, region.group(1, 3, 4, 5))
        except ValueError:
            recording.bad_line(f"{NAME}: a field is not a number", number, text)
        if ended is None and result.duration is not None and began is not None:
            ended = began + result.duration
        ret = result.ret
        if ret < 0:
            ret = -int(getattr(errno, result.errno, 1))
        recording.claim(self.name, number, text)
        recording.machines.names_vms_by("fd")
        recording.machines.change(
            number,
            text.strip(),
            key=integer(match["fd"]),
            slot=slot,
            flags=flags,
            gpa=gpa,
            size=size,
            hva=hva,
            ret=ret,
            time=began,
            thread=thread or None,
            began=began,
            ended=ended,
        )
        if ended is None and began is not None:
            self._open_changes[thread] = len(recording.machines.replay.changes) - 1
        return True

    def _only_a_pointer(self, number: int, text: str, name: str, request: Request) -> None:
        """Refuse a change of which strace shows the address of the argument, and not what is there."""
        if name.endswith("2"):
            message = (
                f"strace does not decode {NAME}2, so it cannot show this VM's memslots; record the VMM's own trace "
                "(QEMU: -trace kvm_set_user_memory), or guestmem record --with bpftrace"
            )
        else:
            was = "raw" if request.number is not None else "verbose"
            message = (
                f"strace shows the address of {NAME}'s argument only, not the slot: it was told so (-e {was}=…), or "
                "could not read it; record without"
            )
        self._recording.bad_line(message, number, text)

    def _end_open_changes(self, thread: int, time: float) -> None:
        """Changes without duration had returned when this line began: the thread's, or, if strace splits calls, all."""
        changes = self._recording.machines.replay.changes
        for each in list(self._open_changes) if self._saw_split else [thread] if thread in self._open_changes else []:
            index = self._open_changes.pop(each)
            if index >= 0:
                changes.ended[index] = time

    def _end_open_runs(self, thread: int, time: float) -> None:
        """KVM_RUNs without a duration end at the next line, at the latest."""
        if self._sole is not None and (self._saw_split or self._sole == thread):
            self._end_run(self._sole, time)
        self._sole = None
        if thread in self._open_runs:
            self._end_run(thread, time)

    def _end_run(self, thread: int, time: float) -> None:
        result = self._open_runs.pop(thread, None)
        if result is not None:
            self._recording.run.run_end(thread, time, reason=_reason(result), errno=result.errno)

    def _whole_run(self, thread: int, call: str, fd: int, time: float | None) -> None:
        """A KVM_RUN on a single line."""
        if time is None or not self._is_ours(thread, fd, call):
            return
        run, result = self._recording.run, _result(call)
        run.run_begin(thread, time)
        if result is None:
            self._recording.note("a KVM_RUN of which the result cannot be read", 0)
        elif result.duration is not None:
            run.run_end(thread, time + result.duration, reason=_reason(result), errno=result.errno)
        else:
            self._open_runs[thread] = result
            self._sole = thread

    def _is_ours(self, thread: int, fd: int, call: str) -> bool:
        """Whether this KVM_RUN is of the VM that is read, as far as is known; notes the vCPU's number."""
        owner = self._vcpu_fds.get(fd)
        if owner is not None and not self._is_our_vm(owner[0]):
            return False
        if thread not in self._known:
            self._known.add(thread)
            self._recording.run.vcpu(thread)
            if thread in self._first:  # its first line, of any call, was in user space
                self._recording.run.known_from(thread, self._first[thread])
            if owner is not None:
                self._recording.run.number(thread, owner[1])
            elif match := VCPU_DECORATION.search(call):
                self._recording.run.number(thread, int(match[1]))
        return True

    def _is_our_vm(self, fd: int) -> bool:
        return self._recording.machines.is_chosen(fd, None)


def _is_call(text: str) -> bool:
    """Whether ``text`` is a system call, a signal, or the end of a process."""
    if text.startswith(("<... ", "---", "+++", "????")):
        return True
    head, bracket, _ = text[:64].partition("(")
    return bool(bracket) and head.replace("_", "").isalnum()


def _result(call: str) -> _Result | None:
    """What stands behind the last ``) = ``."""
    start = call.rfind(" = ")
    while start > 0:
        bracket = call.rfind(")", 0, start + 1)
        if bracket >= 0 and not call[bracket + 1 : start].strip() and (match := RESULT.match(call, bracket)):
            return _Result(match)
        following = call.rfind(" = ", max(0, start - 500), start)
        start = following
    return None


def _reason(result: _Result) -> str | None:
    match = EXIT_REASON.search(result.comment)
    return match[0] if match else None


def _number(text: str) -> int:
    """Decimal or hex, or NULL. Raises ValueError."""
    return 0 if text == "NULL" else integer(text)


@functools.lru_cache(maxsize=64)
def _flags(text: str) -> int | None:
    """Flags as strace prints them, by name, as a number with a comment, or both; None if a name is unknown."""
    flags = 0
    for word in re.sub(r"/\*.*?\*/", "", text).split("|"):
        name = word.strip()
        try:
            flags |= FLAGS[name] if name in FLAGS else integer(name)
        except ValueError:
            return None
    return flags
