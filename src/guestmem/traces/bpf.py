"""What guestmem's bpftrace program prints (``recipe``): memslot changes and vCPUs, on one clock.

``NANOSECONDS PROCESS/THREAD [CPU] EVENT name=value …``. bpftrace prints what each CPU recorded in turns, so the lines
are put in order again, which works for those that come at most BUFFER lines late. ``Lost N events`` stands where it
could not keep up.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .evidence import Irqchip
from .lines import line_of
from .recipe import HEADER
from .requests import request_name

if TYPE_CHECKING:
    from .recording import Other, Recording, Rows

__all__ = ["BpfReader"]

BUFFER = 1 << 16
COLUMNS = (
    r"(\d{1,19}) (\d{1,10})/(\d{1,10}) \[(\d{1,5})\] "
    r"(memslot|memslot_end|create_vcpu|create_irqchip|run|run_end|kvm_entry|kvm_exit|kvm_userspace_exit)"
    r"((?: \w{1,20}=-?\w{1,20}){0,12})"
)
LINE = re.compile(COLUMNS + r"\s*$")
ROW = re.compile(f"(?:{COLUMNS}|(.*))\n")
FIELD = re.compile(r"(\w+)=(-?\w{1,20})")
LOST = re.compile(r"\s*(?:WARNING: )?Lost \d+ events")
LIKE = re.compile(r"\d{1,19} \d{1,10}/\d{1,10} \[\d{1,5}\] memslot")
VMX = {
    0: "EXCEPTION_NMI", 1: "EXTERNAL_INTERRUPT", 7: "INTERRUPT_WINDOW", 8: "NMI_WINDOW", 10: "CPUID", 12: "HLT",
    14: "INVLPG", 18: "VMCALL", 28: "CR_ACCESS", 30: "IO_INSTRUCTION", 31: "MSR_READ", 32: "MSR_WRITE",
    40: "PAUSE_INSTRUCTION", 48: "EPT_VIOLATION", 49: "EPT_MISCONFIG", 52: "PREEMPTION_TIMER",
}  # fmt: skip
"""Exit reasons of VMX (Linux ``arch/x86/include/uapi/asm/vmx.h``) of which something follows."""
SVM = {
    0x60: "INTR", 0x61: "NMI", 0x62: "SMI", 0x64: "VINTR", 0x72: "CPUID", 0x77: "PAUSE", 0x78: "HLT", 0x7B: "IO",
    0x7C: "MSR", 0x81: "VMMCALL", 0x400: "NPF",
}  # fmt: skip
"""The same of SVM (``svm.h``)."""
ERRNOS = {4: "EINTR", 11: "EAGAIN", 14: "EFAULT"}

Record = tuple[int, int, int, int, int, str, str, str]
"""Nanoseconds, line, process, thread, CPU, event, fields, text."""


class BpfReader:
    """Reads the bpftrace program's lines; see the module."""

    name = "bpftrace"
    events = "the lines of guestmem's bpftrace program (guestmem record --with bpftrace)"

    pattern = ROW

    __slots__ = ("_creators", "_latest", "_open", "_ours", "_recording", "_runs", "_waiting")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._waiting: list[Record] = []
        self._latest = 0
        self._open: dict[int, tuple[Record, dict[str, str]]] = {}
        self._ours: dict[int, bool] = {}
        """Whether a thread is of the VM that is read, as far as the changes so far tell."""
        self._runs: set[int] = set()
        self._creators: dict[int, int] = {}
        """Number of the last vCPU that each thread made."""

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is one of the program's."""
        match = LINE.match(text)
        if match is None:
            if text.startswith(HEADER):
                self._recording.run.resolution = 1e-6
                return True
            if "ost " in text and LOST.match(text):
                if self._recording.format == self.name or self._waiting:
                    self._recording.lost_changes(text.strip(), number)
                self._recording.run.lost(None, text.strip())
                return True
            if LIKE.match(text) and self._recording.wants_changes:
                self._recording.bad_line("memslot: its fields cannot be read", number, text)
            return False
        self._take((int(match[1]), number, int(match[2]), int(match[3]), int(match[4]), match[5], match[6], text))
        return True

    @property
    def is_curious(self) -> bool:
        """A line of the program's has no word of its own: it is told by its columns."""
        return bool(self._waiting or self._latest)

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """Take a block of lines as ROW found them."""
        texts = block.split("\n")
        waiting = self._waiting
        for at, (stamp, process, thread, cpu, event, fields, text) in enumerate(rows, number):
            if event:
                waiting.append((int(stamp), at, int(process), int(thread), int(cpu), event, fields, texts[at - number]))
            else:
                other(at, line_of(text))
        if len(waiting) >= 2 * BUFFER:
            self._put_in_order()
        return 0

    def finish(self) -> None:
        """Take what is still waiting."""
        self._put_in_order(last=True)
        for (_, number, *_), _fields in self._open.values():
            if self._recording.wants_changes:
                self._recording.note("a change of which the end is not recorded, which is not read", number)
        run = self._recording.run
        if self._runs and not run.source:
            run.source = "KVM_RUN and " + " and ".join(run.recorded) if run.recorded else "KVM_RUN in bpftrace"

    def _take(self, record: Record) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= 2 * BUFFER:
            self._put_in_order()

    def _put_in_order(self, *, last: bool = False) -> None:
        """Take all but the latest BUFFER lines in order of time: a line may come that late."""
        waiting = self._waiting
        waiting.sort()
        end = len(waiting) if last else max(len(waiting) - BUFFER, 0)
        for record in waiting[:end]:
            self._event(record)
        del waiting[:end]

    def _event(self, record: Record) -> None:
        nanoseconds, number, process, thread, cpu, event, rest, text = record
        if nanoseconds < self._latest and event.startswith("memslot"):
            self._recording.bad_line(
                f"more than {BUFFER} lines too late: sort the file by its first column", number, text
            )
        self._latest = nanoseconds
        time, run = nanoseconds / 1e9, self._recording.run
        if event in ("memslot", "memslot_end"):
            self._ours.clear()
            fields = dict(FIELD.findall(rest))
            if event == "memslot":
                self._open[thread] = record, fields
            else:
                self._change(record, fields)
            return
        ours = self._ours.get(thread)
        if ours is None:
            ours = self._ours[thread] = self._recording.machines.is_chosen(process, thread)
        if not ours:
            return
        if event == "run":
            if thread not in self._runs:
                self._runs.add(thread)
                if thread in self._creators:  # as QEMU does
                    run.number(thread, self._creators[thread])
            run.run_begin(thread, time)
            return
        if event == "run_end":
            if thread in self._runs:
                run.run_end(thread, time, errno="" if rest == " ret=0" else self._errno(rest, "ret", number, text))
            return
        fields = dict(FIELD.findall(rest))
        index = _int(fields.get("vcpu"), number, self._recording, text)
        if event == "create_vcpu":
            if index is not None:
                run.created(index, time)
                self._creators[thread] = index
        elif event == "create_irqchip":
            run.irqchip = Irqchip.KERNEL
        elif event == "kvm_entry":
            run.entry(thread, time, cpu, index=index)
        elif event == "kvm_exit":
            reason = _int(fields.get("reason"), number, self._recording, text)
            names = {"1": VMX, "2": SVM}.get(fields.get("isa", ""), {})
            run.exit(thread, time, cpu, index=index, reason=names.get(reason or 0, "") if reason is not None else "")
        else:
            failed = self._errno(rest, "errno", number, text)
            reason = None if failed else _int(fields.get("reason"), number, self._recording, text)
            run.user_exit(thread, time, cpu, reason=reason, errno=failed)

    def _errno(self, fields: str, name: str, number: int, text: str) -> str:
        """The error that field ``name`` tells, "" if none."""
        value = _int(dict(FIELD.findall(fields)).get(name), number, self._recording, text) or 0
        return ERRNOS.get(-value, "an error") if value < 0 else ""

    def _change(self, end: Record, ended: dict[str, str]) -> None:
        recording = self._recording
        opened = self._open.pop(end[3], None)
        if not recording.wants_changes:
            return
        if opened is None:
            recording.note("the end of a change of which the begin is not recorded, which is not read", end[1])
            return
        (nanoseconds, number, process, thread, _, _, _, text), fields = opened
        try:
            values = {name: int(fields[name], 16) for name in ("request", "flags", "gpa", "size", "hva")}
            slot, ret, vm = int(fields["slot"]), int(ended["ret"]), fields["vm"]
        except (KeyError, ValueError):
            recording.bad_line("memslot: its fields cannot be read", number, text)
        if not request_name(values.pop("request")).startswith("KVM_SET_USER_MEMORY_REGION"):
            recording.bad_line(f"memslot: request {fields['request']} is none of a memslot", number, text)
        recording.claim(self.name, number, text)
        recording.machines.change(
            number,
            text.strip(),
            key=f"{process}:{vm}",
            slot=slot,
            ret=ret,
            thread=thread,
            time=nanoseconds / 1e9,
            began=nanoseconds / 1e9,
            ended=end[0] / 1e9,
            **values,
        )


def _int(text: str | None, number: int, recording: Recording, line: str) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        recording.bad_line(f"{text!r} is not a number", number, line)
