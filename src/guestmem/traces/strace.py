"""strace's ioctl lines: ``strace -f -ttt -T -yy -e trace=ioctl`` and every variant of them.

``KVM_SET_USER_MEMORY_REGION`` is decoded since 2018 (strace ``kvm.c``): slot and size decimal, addresses hex, flags by
name. ``KVM_SET_USER_MEMORY_REGION2`` is shown as a bare pointer by every strace so far: then only the VMM's own trace
or a recording by bpftrace can tell, and the reader says so. Calls that strace split into ``<unfinished ...>`` and
``resumed`` are put together again. What a line looks like under which option:
``strace_line``; what is known of vCPUs: ``strace_runs``; how a change is read: ``strace_change``.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING

from ..units import PAGE_SHIFT
from .columns import Plain
from .lines import line_of
from .prefix import resolution_of
from .requests import integer, request_name
from .strace_block import CALLS, OUTCOME, ROW, SPLIT_RUN, Change, Run
from .strace_change import SET_REGION, Region, region_of
from .strace_line import ARGUMENTS, LEADER, Call, Clock, request_of, result_of
from .strace_processes import Processes
from .strace_runs import StraceRuns

if TYPE_CHECKING:
    from .pieces import Piece, PieceChanges
    from .recording import Other, Recording, Rows
    from .strace_line import Request

__all__ = ["StraceReader"]

PID_MAX_LIMIT = 1 << 22
INDEX = re.compile(r", (?:argp=|arg=)?(\d{1,6}|0x[0-9a-f]{1,6})\)")
ATTACHED = re.compile(r"(?:strace: )?Process (\d{1,10}) attached")
UNFINISHED = re.compile(r"\s{0,8}<(?:unfinished|detached) \.\.\.>\s{0,8}$")
RESUMED = re.compile(r"<\.\.\. ioctl resumed> ?")


class StraceReader:
    """Reads strace's lines; see the module."""

    name = "strace"
    events = "strace's ioctl(…, KVM_SET_USER_MEMORY_REGION, …) or KVM_RUN (-e trace=ioctl)"

    pattern = ROW

    __slots__ = (
        "_clock",
        "_open",
        "_open_changes",
        "_processes",
        "_recording",
        "_runs",
        "_saw_split",
    )

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._clock = Clock()
        self._open: dict[int, Call] = {}
        self._runs = StraceRuns(recording)
        self._open_changes: dict[int, int] = {}
        """Thread to index of its last change, if that was on one line without a duration: it ends before the next."""
        self._saw_split = False
        self._processes = Processes(self._renamed)

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is a change, or says when a vCPU was inside."""
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
        thread = self._processes.of_line(
            thread, has_bracket=bool(bracket), resumes=call.startswith("<..."), waiting=self._open
        )
        if "<unfinished ...>" in call:
            self._saw_split = True
        if time is not None:
            self._recording.run.saw(time)
            self._runs.saw(thread, time)
            if self._open_changes:
                self._end_open_changes(thread, time)
            if self._runs.has_open:
                self._runs.end_open(thread, time, any_ends=self._saw_split)
            if thread in self._runs.known and thread not in self._open:
                self._recording.run.elsewhere(thread, time)
        if is_call:
            return self._begins(number, text, call, thread, time)
        if resumes:
            return self._resumes(number, text, call, thread, time)
        if call.startswith("+++"):
            self._processes.ended(thread)
        return False

    def finish(self) -> None:
        """Refuse what is still open, and say what is known of the VM."""
        recording = self._recording
        if recording.wants_changes:
            for opened in self._open.values():
                if not opened.name.startswith(SET_REGION):
                    continue
                if opened.detached:
                    recording.note("strace was detached inside a change: whether it was made is not known", opened.line)
                else:
                    message = "the call never returned in this trace: truncated?"
                    recording.bad_line(message, opened.line, opened.text)
        if not self._runs.known and recording.format != self.name:
            return
        self._processes.name_the_root(recording.machines.replay.changes)
        run = recording.run
        if self._runs.known:
            run.source = "KVM_RUN in strace"
        if self._clock.last is not None:
            run.resolution = resolution_of(self._clock.digits)
        if self._clock.last is not None and self._clock.digits == 0:
            recording.note("stamps of whole seconds: they tell the order, not how long anything took", 0)
        run.irqchip = self._runs.irqchip(recording.machines.key)

    @property
    def is_curious(self) -> bool:
        """Every system call of a vCPU's thread says that it was outside."""
        return bool(self._runs.known) or self._recording.format == self.name

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """Take a block of lines as ROW found them."""
        texts: list[str] = []
        for at, (word, stamp, text, took, line) in enumerate(rows, number):
            call = CALLS[text]
            if call is not None and not self._open_changes and not self._runs.has_open:
                thread, time = int(word), float(stamp)
                if isinstance(call, Run):
                    if self._whole_run(thread, time, stamp, call, float(took)):
                        continue
                elif self._recording.wants_changes:
                    texts = texts or block.split("\n")
                    self._whole_change(at, texts[at - number], thread, time, stamp, call, float(took))
                    continue
            if text:
                texts = texts or block.split("\n")
                line = texts[at - number]  # noqa: PLW2901 (which no group has as a whole)
            elif self._split_run(at, line):
                continue
            other(at, line_of(line))
        return 0

    def fits(self, piece: Piece) -> bool:
        """See ``pieces``."""
        if self._open_changes or self._runs.has_open or self._clock.length != piece.length:
            return False
        if not all(map(self._has_lane, piece.keys)):
            return False
        if piece.changes is None:
            return True
        recording, (_, fds, *_) = self._recording, piece.changes
        return (
            recording.wants_changes
            and recording.format == self.name
            and len(fds) == 1
            and all(self._runs.knows(thread) for thread in piece.threads)
            and self._open.keys().isdisjoint(piece.threads)
            and recording.machines.current_of(fds[0], piece.changers) is not None
        )

    def _has_lane(self, key: tuple[str, str]) -> bool:
        """Whether this thread runs a vCPU of the VM that is read, by this file descriptor."""
        thread, (number, _, decoration) = int(key[0]), key[1].partition("<")
        return thread in self._runs.known and self._runs.is_ours(thread, int(number), decoration)

    def is_outside(self, thread: int) -> bool:
        """See ``pieces``."""
        return thread in self._runs.known

    def carry_out(self, number: int, piece: Piece, changes: PieceChanges) -> int:
        """See ``pieces``."""
        replay = self._recording.machines.current_of(changes.fds[0], piece.changers)
        assert replay is not None
        lines = array("Q", [number + row for row in changes.rows])
        return replay.take_calls(lines, Plain.of_bytes(changes.columns), array("d", changes.ended))

    def passed(self, newest: float) -> None:
        """See ``pieces``."""
        self._clock.saw(newest)

    def _whole_run(self, thread: int, begin: float, stamp: str, call: Run, took: float) -> bool:
        """A KVM_RUN as ROW found it; False if it needs a closer look."""
        self._runs.saw(thread, begin)
        fd, _, decoration = call.fd.partition("<")
        if not self._runs.is_ours(thread, int(fd), decoration):
            return False
        self._clock.unix(stamp)
        self._recording.run.whole_run(thread, begin, begin + took, call.word)
        return True

    def _split_run(self, number: int, text: str) -> bool:
        """A line on which a KVM_RUN begins or ends; False if it is none, or needs a closer look."""
        match = SPLIT_RUN.fullmatch(text)
        if match is None or self._open_changes or self._runs.has_open:
            return False
        word, stamp, call, fd, outcome = match.groups()
        thread, run = int(word), self._recording.run
        opened = self._open.get(thread)
        if outcome and (opened is None or opened.name != "KVM_RUN"):
            return False
        time = self._clock.unix(stamp)
        run.saw(time)
        self._runs.saw(thread, time)
        if outcome:
            del self._open[thread]
            if thread in self._runs.known:
                ended = OUTCOME.match(outcome)
                failed, reason = ended.groups() if ended else (None, None)
                run.run_end(thread, time, reason=reason, errno=failed or "")
            return True
        self._saw_split = True
        if thread in self._runs.known and opened is None:
            run.elsewhere(thread, time)
        self._open[thread] = Call(number, call, time, "KVM_RUN", detached=False)
        number_of_fd, _, decoration = fd.partition("<")
        if self._runs.is_ours(thread, int(number_of_fd), decoration):
            run.run_begin(thread, time)
        return True

    def _whole_change(
        self, number: int, text: str, thread: int, time: float, stamp: str, call: Change, took: float
    ) -> None:
        """A change as ROW found it."""
        run = self._recording.run
        self._clock.unix(stamp)
        run.saw(time)
        self._runs.saw(thread, time)
        if thread in self._runs.known and thread not in self._open:
            run.elsewhere(thread, time)
        fd, _, slot, flags, base, npages, hva = call
        region = Region(slot, flags, base << PAGE_SHIFT, npages << PAGE_SHIFT, hva, 0, took)
        self._change(number, text, fd, region, thread, time, None)

    def _other(self, number: int, text: str) -> bool:
        """A line that is no system call."""
        if text.startswith((" > ", "> ")):
            self._recording.slow = "strace -k"
            return True
        if match := ATTACHED.match(text):
            self._processes.attached(int(match[1]))
        elif SET_REGION in text and "ioctl(" in text and self._recording.wants_changes and " cmd: " not in text:
            if '"' in text:
                self._recording.note(f"{SET_REGION} is named inside a string, which is not read", number)
            else:
                self._recording.bad_line("neither process, time nor call can be read", number, text)
        return False

    def _renamed(self, before: int, after: int) -> None:
        """The thread that was called ``before`` is ``after``."""
        if before in self._open:
            self._open[after] = self._open.pop(before)
        self._runs.renamed(before, after)

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
            if name.startswith(SET_REGION):
                self._recording.run.change_at(time, "memory_size=0, " in call)
            self._open[thread] = Call(number, UNFINISHED.sub("", call), time, name, detached=detached)
            if name == "KVM_RUN":
                self._runs.begins(thread, integer(match["fd"]), call, time)
            return name == "KVM_RUN"
        return self._call(number, text, call, match, request, name, thread, time, None)

    def _resumes(self, number: int, text: str, call: str, thread: int, time: float | None) -> bool:
        """A line on which a split ioctl ends."""
        opened = self._open.pop(thread, None)
        if opened is None:
            could_be = any(each.name.startswith(SET_REGION) for each in self._open.values())
            if could_be and self._recording.wants_changes and self._processes.saw_bracket and not thread:
                self._recording.bad_line("which process's call ends here cannot be told", number, text)
            return False
        whole = opened.text + RESUMED.sub("", call)
        match = ARGUMENTS.match(whole)
        request = request_of(match["request"]) if match else None
        if match is None or request is None:
            return self._refuse_if_change(opened.line, whole)
        if opened.name == "KVM_RUN":
            self._runs.ends(thread, whole, time)
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
            self._runs.whole(thread, call, integer(match["fd"]), began)
            return True
        if name.startswith(SET_REGION):
            if not self._recording.wants_changes:
                return False
            region = region_of(self._recording, number, text, match["request"], request, name)
            if region is None:
                return False
            self._change(number, text.strip(), integer(match["fd"]), region, thread, began, ended)
            return True
        if not name:
            return self._refuse_if_change(number, text) if SET_REGION in text else False
        result = result_of(call)
        if result is None or result.ret is None or result.ret < 0:
            return False
        fd = integer(match["fd"])
        if name == "KVM_CREATE_VM":
            self._runs.created_vm(result.ret)
            self._recording.machines.names_vms_by("fd")
            self._recording.machines.created(result.ret, thread or None, number)
        elif name == "KVM_CREATE_VCPU":
            if index := INDEX.match(match["request"], request.end):
                self._runs.created_vcpu(fd, result.ret, integer(index[1]), began)
        elif name == "KVM_CREATE_IRQCHIP":
            self._runs.made_irqchip(fd)
        else:  # KVM_ENABLE_CAP, KVM_CREATE_DEVICE
            self._runs.may_have_made_irqchip(fd)
        return False

    def _refuse_if_change(self, number: int, text: str) -> bool:
        if SET_REGION in text and self._recording.wants_changes and '"' not in text and " cmd: " not in text:
            self._recording.bad_line(f"{SET_REGION}: its arguments cannot be read", number, text)
        return False

    def _change(
        self, number: int, text: str, fd: int, region: Region, thread: int, began: float | None, ended: float | None
    ) -> None:
        """Take one change."""
        recording = self._recording
        slot, flags, gpa, size, hva, ret, duration = region
        if ended is None and duration is not None and began is not None:
            ended = began + duration
        recording.claim(self.name, number, text)
        recording.machines.names_vms_by("fd")
        recording.machines.change(
            number,
            text,
            key=fd,
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

    def _end_open_changes(self, thread: int, time: float) -> None:
        """Changes without duration had returned when this line began: the thread's, or, if strace splits calls, all."""
        changes = self._recording.machines.replay.changes
        for each in list(self._open_changes) if self._saw_split else [thread] if thread in self._open_changes else []:
            index = self._open_changes.pop(each)
            if index >= 0:
                changes.ended[index] = time


def _is_call(text: str) -> bool:
    """Whether ``text`` is a system call, a signal, or the end of a process."""
    if text.startswith(("<... ", "---", "+++", "????")):
        return True
    head, bracket, _ = text[:64].partition("(")
    return bool(bracket) and head.replace("_", "").isalnum()
