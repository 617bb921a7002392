"""KVM's tracepoints as ftrace (``trace``, ``trace_pipe``), ``trace-cmd report`` and ``perf script`` print them.

Linux has no tracepoint for memslots; these tell when a vCPU was inside the guest: from ``kvm_entry`` to ``kvm_exit``
or, where ``kvm_userspace_exit`` was recorded as well, from the first entry to the return to user space. Record the
latter: between an exit and the next entry KVM works for the vCPU and looks at memslots too, and only with it can a
vCPU that waits in user space be told from one that KVM is serving. Line shapes: Linux ``kernel/trace/trace_output.c``
(``comm-PID [cpu] flags seconds: event: …``); perf writes a space before the PID and ``kvm:`` before the event.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["PREFIX", "FtraceReader"]

PREFIX = re.compile(
    r"\s*(?P<comm>\S.*?|<\.\.\.>)[-\s]\s*(?:\d+/)?(?P<thread>\d+)\s+(?:\([\s\d-]+\)\s+)?\[\d+\]\s+(?:\S+\s+)?"
    r"(?P<time>\d+(?:\.\d+)?):\s+"
)
EVENT = re.compile(r"(?:^|[\s:])(kvm_entry|kvm_exit|kvm_userspace_exit):")
INDEX = re.compile(r"\s*vcpu (\d+)")
LOST = re.compile(r"\[LOST \d+ EVENTS\]|LOST \d+ EVENTS?!|\bPERF_RECORD_LOST\b")


class FtraceReader:
    """Reads kvm_entry, kvm_exit and kvm_userspace_exit; see the module."""

    name = "ftrace"
    events = "kvm_entry, kvm_exit or kvm_userspace_exit (ftrace, trace-cmd, perf script)"

    __slots__ = ("_entries", "_exits", "_inside", "_recording", "_returns")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._entries: dict[int, array[float]] = {}
        self._exits: dict[int, array[float]] = {}
        self._returns: dict[int, array[float]] = {}
        self._inside: set[int] = set()

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is one of the three events."""
        event = EVENT.search(text) if "kvm_" in text else None
        if event is None:
            if "LOST" in text and LOST.search(text):
                self._recording.run.lost += 1
            return False
        prefix = PREFIX.match(text, 0, event.start(1))
        if prefix is None:
            if '"' in text[: event.start()]:
                return False
            self._recording.bad_line(f"{event[1]}: no thread and time before it", number, text)
        thread, time = int(prefix["thread"]), float(prefix["time"])
        run = self._recording.run
        run.saw(time)
        if thread not in self._entries:
            self._entries[thread], self._exits[thread], self._returns[thread] = array("d"), array("d"), array("d")
            if event[1] != "kvm_entry":  # inside since before the trace began
                assert run.first is not None
                self._entries[thread].append(run.first)
                self._inside.add(thread)
        if event[1] == "kvm_entry":
            if index := INDEX.match(text, event.end()):
                run.number(thread, int(index[1]))
            if thread not in self._inside:
                self._entries[thread].append(time)
                self._inside.add(thread)
        else:
            if thread in self._inside:
                self._exits[thread].append(time)
                self._inside.discard(thread)
            if event[1] == "kvm_userspace_exit":
                self._returns[thread].append(time)
        return True

    def finish(self) -> None:
        """Hand over the stretches inside the guest."""
        if not self._entries:
            return
        run = self._recording.run
        run.source = "kvm_entry and kvm_exit"
        to_user_space = any(self._returns.values())
        if to_user_space:
            run.source = "kvm_entry and kvm_userspace_exit"
        for thread, entries in self._entries.items():
            exits = self._exits[thread]
            if len(exits) < len(entries):
                assert run.last is not None
                exits.append(run.last)
            if to_user_space:
                entries, exits = _until_return(entries, exits, self._returns[thread], run.last)  # noqa: PLW2901 - the same, joined
            run.vcpu(thread)
            for start, end in zip(entries, exits, strict=True):
                run.stretch(thread, start, end)


def _until_return(
    entries: array[float], exits: array[float], returns: array[float], last: float | None
) -> tuple[array[float], array[float]]:
    """Join stretches between which the vCPU did not return to user space; each ends at the return. O(n)."""
    starts, ends = array("d"), array("d")
    i, start = 0, None
    for k, (entry, left) in enumerate(zip(entries, exits, strict=True)):
        start = entry if start is None else start
        following = entries[k + 1] if k + 1 < len(entries) else None
        while i < len(returns) and returns[i] < left:
            i += 1
        if i < len(returns) and (following is None or returns[i] <= following):
            starts.append(start)
            ends.append(returns[i])
            start = None
        elif following is None:
            starts.append(start)
            ends.append(left if last is None else last)
            start = None
    return starts, ends
