"""KVM's tracepoints as ftrace (``trace``, ``trace_pipe``), ``trace-cmd report`` and ``perf script`` print them.

Linux has no tracepoint for memslots; these tell when a vCPU was inside the guest: from ``kvm_entry`` to ``kvm_exit``
or, where ``kvm_userspace_exit`` was recorded as well, from the first entry to the return to user space. Record the
latter: between an exit and the next entry KVM works for the vCPU and looks at memslots too, and only with it can a
vCPU that waits in user space be told from one that KVM is serving. Line shapes: Linux ``kernel/trace/trace_output.c``
(``comm-PID [cpu] flags seconds: event: …``); perf writes a space before the PID and ``kvm:`` before the event.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["PREFIX", "FtraceReader"]

PREFIX = re.compile(
    r"\s*(?P<comm>\S.*?|<\.\.\.>)[-\s]\s*(?:\d+/)?(?P<thread>\d+)\s+(?:\([\s\d-]+\)\s+)?\[(?P<cpu>\d+)\]\s+(?:\S+\s+)?"
    r"(?P<time>\d+(?:\.\d+)?):\s+"
)
EVENT = re.compile(r"(?:^|[\s:])(kvm_entry|kvm_exit|kvm_userspace_exit):")
INDEX = re.compile(r"\s*vcpu (\d+)")
LOST = re.compile(
    r"CPU:(?P<cpu>\d+) \[(?:LOST )?(?:\d+ )?EVENTS(?: DROPPED)?\]"  # kernel; trace-cmd; also without number
    r"|LOST \d+ EVENTS?!|\bPERF_RECORD_LOST(?:_SAMPLES)?\b|\[(?:\d+ )?EVENTS DROPPED\]|\[LOST (?:\d+ )?EVENTS\]"
    r"|^Lost \d+ events\b"
)
WRITTEN = re.compile(r"#\s*entries-in-buffer/entries-written:\s*(\d+)/(\d+)")
REASON = re.compile(r"(?:.*?\breason )?\s*([A-Za-z_][\w-]*)")
USER_REASON = re.compile(r"\s*reason (?:KVM_EXIT_)?(?P<name>\w+) \((?P<number>-?\d+)\)")


class FtraceReader:
    """Reads kvm_entry, kvm_exit and kvm_userspace_exit; see the module."""

    name = "ftrace"
    events = "kvm_entry, kvm_exit or kvm_userspace_exit (ftrace, trace-cmd, perf script)"

    __slots__ = ("_recording",)

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is one of the three events."""
        event = EVENT.search(text) if "kvm_" in text else None
        run = self._recording.run
        if event is None:
            self._other_line(text)
            return False
        prefix = PREFIX.match(text, 0, event.start(1))
        if prefix is None:
            if '"' in text[: event.start()]:
                return False
            self._recording.bad_line(f"{event[1]}: no thread and time before it", number, text)
        thread, stamp, cpu = int(prefix["thread"]), prefix["time"], prefix["cpu"]
        time, on = float(stamp), None if cpu is None else int(cpu)
        if "." not in stamp:
            run.resolution = 1.0
        match event[1]:
            case "kvm_entry":
                index = INDEX.match(text, event.end())
                immediate = "[immediate exit]" in text
                run.entry(thread, time, on, index=int(index[1]) if index else None, immediate=immediate)
            case "kvm_exit":
                index = INDEX.match(text, event.end())
                reason = REASON.match(text, index.end() if index else event.end())
                run.exit(thread, time, on, index=int(index[1]) if index else None, reason=reason[1] if reason else "")
            case _:
                self._user_exit(thread, time, on, USER_REASON.match(text, event.end()))
        return True

    def _user_exit(self, thread: int, time: float, cpu: int | None, match: re.Match[str] | None) -> None:
        """Linux ``include/trace/events/kvm.h``: a negative errno prints ``restart`` (EINTR) or ``error``."""
        if match is None:
            self._recording.run.user_exit(thread, time, cpu)
        elif match["name"] in ("restart", "error"):
            errno = {"-4": "EINTR", "-11": "EAGAIN", "-14": "EFAULT"}.get(match["number"])
            errno = errno or ("EINTR" if match["name"] == "restart" else "an error")
            self._recording.run.user_exit(thread, time, cpu, errno=errno)
        else:
            self._recording.run.user_exit(thread, time, cpu, reason=abs(int(match["number"])))

    def _other_line(self, text: str) -> None:
        """Note what a line that is none of the events says of what is missing."""
        run = self._recording.run
        if ("LOST" in text or "DROPPED" in text or text.startswith("Lost ")) and (lost := LOST.search(text)):
            cpu = lost["cpu"]
            if cpu is None and (prefix := PREFIX.match(text, 0, lost.start())) and prefix["cpu"]:
                cpu = prefix["cpu"]
            run.lost(None if cpu is None else int(cpu), lost[0])
        elif text.startswith("#"):
            if (written := WRITTEN.match(text)) and int(written[1]) < int(written[2]):
                run.overwritten = True
        elif run.overwritten and (prefix := PREFIX.match(text)) and prefix["cpu"]:
            run.saw(float(prefix["time"]), int(prefix["cpu"]))

    def finish(self) -> None:
        """Say where the run state is from."""
        run = self._recording.run
        kinds = run.recorded
        if kinds:
            run.source = run.source or " and ".join(kinds)
