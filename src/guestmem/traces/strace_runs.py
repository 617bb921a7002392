"""strace's KVM_RUN calls: when each vCPU's thread was inside, and of which VM it is.

A KVM_RUN has not begun before the stamp of its line, and has returned at that stamp plus the duration (``-T``), or at
the stamp of the ``resumed`` line. One on a single line without a duration has returned at the thread's next line; in a
file with split calls, at the next line of any thread, since strace would have split it otherwise. With
``-e kvm=vcpu`` the line says with which exit. Where another thread's line came first, and no call had been split so
far, it may have returned long before the thread's next line: so it is not told with which exit it returned then, since
that would show that guest code ran until then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .evidence import Irqchip
from .strace_line import result_of

if TYPE_CHECKING:
    from .recording import Recording
    from .strace_line import Result

__all__ = ["StraceRuns"]

VCPU_DECORATION = re.compile(r"kvm-vcpu:(\d{1,6})")
EXIT_REASON = re.compile(r"KVM_EXIT_\w{1,40}")


class StraceRuns:
    """What a file of strace's tells about vCPUs. ``known`` are the threads that run one."""

    __slots__ = ("_first", "_irqchips", "_late", "_open", "_recording", "_sole", "_vcpu_fds", "known")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.known: set[int] = set()
        self._open: dict[int, Result] = {}
        """Threads whose last KVM_RUN has no end yet, since its line gave no duration; with its result."""
        self._late: set[int] = set()
        """Those of them that may have returned long before it will be known."""
        self._sole: int | None = None
        """The thread among them whose line was the last of the file so far."""
        self._first: dict[int, float] = {}
        """Stamp of each thread's first line."""
        self._vcpu_fds: dict[int, tuple[int, int]] = {}
        """vCPU file descriptor to (VM's file descriptor, number of the vCPU)."""
        self._irqchips: dict[int, Irqchip] = {}

    @property
    def has_open(self) -> bool:
        """Whether a KVM_RUN waits for its end."""
        return bool(self._open)

    def irqchip(self, key: object) -> Irqchip:
        """Where the interrupt controllers of the VM with this file descriptor are."""
        return self._irqchips.get(key, Irqchip.UNKNOWN) if isinstance(key, int) else Irqchip.UNKNOWN

    def knows(self, thread: int) -> bool:
        """Whether ``thread`` had a line."""
        return thread in self._first

    def saw(self, thread: int, time: float) -> None:
        """``thread`` has a line here."""
        if thread not in self._first:
            self._first[thread] = time

    def renamed(self, before: int, after: int) -> None:
        """The thread that was called ``before`` is ``after``."""
        if before in self._open:
            self._open[after] = self._open.pop(before)
        if before in self._late:
            self._late.remove(before)
            self._late.add(after)
        if self._sole == before:
            self._sole = after

    def created_vm(self, fd: int) -> None:
        """KVM_CREATE_VM returned ``fd``."""
        if fd in self._irqchips and any(vm == fd for vm, _ in self._vcpu_fds.values()):
            self._recording.run.lost(None, f"file descriptor {fd} became another VM's")
            self._vcpu_fds = {vcpu: owner for vcpu, owner in self._vcpu_fds.items() if owner[0] != fd}
        self._irqchips[fd] = Irqchip.USER

    def created_vcpu(self, vm: int, fd: int, index: int, began: float | None) -> None:
        """KVM_CREATE_VCPU ``index`` of ``vm`` returned ``fd``."""
        self._vcpu_fds[fd] = vm, index
        if began is not None and self._is_our_vm(vm):
            self._recording.run.created(index, began)

    def made_irqchip(self, vm: int) -> None:
        """KVM_CREATE_IRQCHIP."""
        self._irqchips[vm] = Irqchip.KERNEL

    def may_have_made_irqchip(self, vm: int) -> None:
        """KVM_ENABLE_CAP or KVM_CREATE_DEVICE, of which strace does not show the kind."""
        if self._irqchips.get(vm) is Irqchip.USER:
            self._irqchips[vm] = Irqchip.UNKNOWN

    def is_ours(self, thread: int, fd: int, call: str) -> bool:
        """Whether this KVM_RUN is of the VM that is read, as far as is known; notes the vCPU's number."""
        owner = self._vcpu_fds.get(fd)
        if owner is not None and not self._is_our_vm(owner[0]):
            return False
        if thread not in self.known:
            run = self._recording.run
            self.known.add(thread)
            run.vcpu(thread)
            if thread in self._first:  # its first line, of any call, was in user space
                run.known_from(thread, self._first[thread])
            if owner is not None:
                run.number(thread, owner[1])
            elif match := VCPU_DECORATION.search(call):
                run.number(thread, int(match[1]))
        return True

    def begins(self, thread: int, fd: int, call: str, time: float | None) -> None:
        """A KVM_RUN of which the end stands on another line."""
        if self.is_ours(thread, fd, call) and time is not None:
            self._recording.run.run_begin(thread, time)

    def ends(self, thread: int, call: str, time: float | None) -> None:
        """The end of such a one; ``call`` is both parts of it."""
        if time is not None and thread in self.known:
            result = result_of(call)
            if result is None:
                self._recording.run.run_end(thread, time)
            else:
                self._recording.run.run_end(thread, time, reason=_reason(result), errno=result.errno)

    def whole(self, thread: int, call: str, fd: int, time: float | None) -> None:
        """A KVM_RUN on a single line."""
        if time is None or not self.is_ours(thread, fd, call):
            return
        run, result = self._recording.run, result_of(call)
        run.run_begin(thread, time)
        if result is None:
            self._recording.note("a KVM_RUN of which the result cannot be read", 0)
        elif result.duration is not None:
            run.run_end(thread, time + result.duration, reason=_reason(result), errno=result.errno)
        else:
            self._open[thread] = result
            self._sole = thread

    def end_open(self, thread: int, time: float, *, any_ends: bool) -> None:
        """KVM_RUNs without a duration end at the next line, at the latest: the thread's, or with ``any_ends`` any."""
        if self._sole is not None and (any_ends or self._sole == thread):
            self._end(self._sole, time)
        elif self._sole is not None:
            self._late.add(self._sole)
        self._sole = None
        if thread in self._open:
            self._end(thread, time)

    def _end(self, thread: int, time: float) -> None:
        result = self._open.pop(thread, None)
        if result is not None and thread in self._late:
            self._late.remove(thread)
            self._recording.run.run_end(thread, time)
        elif result is not None:
            self._recording.run.run_end(thread, time, reason=_reason(result), errno=result.errno)

    def _is_our_vm(self, fd: int) -> bool:
        return self._recording.machines.is_chosen(fd, None)


def _reason(result: Result) -> str | None:
    match = EXIT_REASON.search(result.comment)
    return match[0] if match else None
