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
from .recorder import BEGIN_WORD, end_word
from .requests import request_name

if TYPE_CHECKING:
    from .recording import Other, Recording, Rows
    from .whereabouts import Track

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
ENDED = end_word()
ERRNOS = {4: "EINTR", 11: "EAGAIN", 14: "EFAULT"}

Record = tuple[int, int, str, str, str, str, str, str]
"""Nanoseconds, line, process, thread, CPU, event, fields, text."""
MOST_LANES = 1 << 14
SUCCEEDED = " ret=0"


class BpfReader:
    """Reads the bpftrace program's lines; see the module."""

    name = "bpftrace"
    events = "the lines of guestmem's bpftrace program (guestmem record --with bpftrace)"

    pattern = ROW

    __slots__ = ("_creators", "_lanes", "_latest", "_open", "_ours", "_recording", "_runs", "_version", "_waiting")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._waiting: list[Record] = []
        self._latest = 0
        self._open: dict[int, tuple[Record, dict[str, str]]] = {}
        self._ours: dict[int, bool] = {}
        """Whether a thread is of the VM that is read, as far as the changes so far tell."""
        self._runs: set[int] = set()
        self._lanes: dict[str, Track] = {}
        """Where the KVM_RUNs of a thread are kept, by its number as it stands there."""
        self._version = 0
        """What the recorder's and that of the machines were together when the lanes were found."""
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
        self._take((int(match[1]), number, match[2], match[3], match[4], match[5], match[6], text))
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
                waiting.append((int(stamp), at, process, thread, cpu, event, fields, texts[at - number]))
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
        recording, run, lanes = self._recording, self._recording.run, self._lanes
        since, until, limit = 0, -1, run.next_mark
        for record in waiting[:end]:
            nanoseconds, _, _, word, _, event, rest, _ = record
            begins = event == "run"
            if begins or (event == "run_end" and rest == SUCCEEDED):
                track = lanes.get(word)
                time = nanoseconds / 1e9
                if track is not None and time <= limit:
                    track.times.append(time)
                    track.words.append(BEGIN_WORD if begins else ENDED)
                    if len(track.times) > track.full:
                        track.forget()
                    if until < 0:
                        since = nanoseconds
                    until = nanoseconds
                    continue
            if until >= 0:
                self._passed(since, until)
                until = -1
            self._event(record)
            limit = run.next_mark
            if (version := run.version + recording.machines.version) != self._version:
                lanes.clear()  # a change may tell that the thread is another VM's
                self._version = version
            elif begins and (track := self._lane(int(word))) is not None:
                lanes[word] = track
        if until >= 0:
            self._passed(since, until)
        del waiting[:end]

    def _passed(self, first: int, last: int) -> None:
        """KVM_RUNs up to ``last`` went to their lanes."""
        self._recording.run.passed(first / 1e9, last / 1e9)
        self._latest = last

    def _lane(self, thread: int) -> Track | None:
        """Where the KVM_RUNs of ``thread`` are kept, if one says no more than itself from now on."""
        if thread not in self._runs or not self._ours.get(thread) or len(self._lanes) >= MOST_LANES:
            return None
        return self._recording.run.lane(thread)

    def _event(self, record: Record) -> None:
        nanoseconds, number, _, _, _, event, rest, text = record
        process, thread, cpu = map(int, record[2:5])
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
                run.run_end(thread, time, errno="" if rest == SUCCEEDED else self._errno(rest, "ret", number, text))
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
        opened = self._open.pop(int(end[3]), None)
        if not recording.wants_changes:
            return
        if opened is None:
            recording.note("the end of a change of which the begin is not recorded, which is not read", end[1])
            return
        (nanoseconds, number, process, thread, _, _, _, text), fields = opened  # as they stand there
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
            key=f"{int(process)}:{vm}",
            slot=slot,
            ret=ret,
            thread=int(thread),
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
