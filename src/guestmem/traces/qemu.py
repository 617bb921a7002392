"""QEMU's own trace, as its text backends print it (``-trace kvm_set_user_memory``, or ``-trace 'kvm_*'``).

Events: ``kvm_set_user_memory``, ``kvm_clear_dirty_log``, ``kvm_vcpu_ioctl``, ``kvm_run_exit``, ``kvm_vm_ioctl``
(``accel/kvm/trace-events``), ``global_dirty_changed`` (``system/trace-events``) and ``vfio_listener_region_*``
(``hw/vfio/trace-events``). Up to 2022 the slot number carried the address space in its upper half; then came
``AddrSpace#``, and since 2024 the guest_memfd fields before ``ret``; trees for SNP and TDX had ``restricted_fd`` after
it. A change is printed when the call has returned, ``kvm_vcpu_ioctl`` and ``kvm_vm_ioctl`` before they are made,
``kvm_run_exit`` after KVM_RUN returned with an exit (not with an error). What stands before an event: ``qemu_prefix``;
``simpletrace.py`` prints lines of its own: ``simpletrace``.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import re
from array import array
from typing import TYPE_CHECKING

from ..memslots.slot import KVM_MEM_SLOTS_NUM
from ..units import PAGE_SHIFT, PAGE_SIZE
from .bundles import Bundler
from .columns import Plain
from .evidence import Irqchip
from .lines import line_of
from .qemu_prefix import Prefix, read_prefix
from .recorder import BEGIN_WORD, ELSEWHERE_WORD, RETURNED, end_word
from .replay import MAX_SIZE
from .requests import integer, request_name
from .timeline import DirtyLogClear, DmaChange, GlobalDirtyChange
from .whereabouts import KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .bundles import Made
    from .recording import Other, Recording, Rows
    from .replay import Replay
    from .whereabouts import Track

    _Lane = tuple[Track, array[float], array[int], int]

__all__ = ["QemuEvents", "QemuReader", "plain_or_bundles"]

EVENT = re.compile(
    r"(?<![\w=/.,-])(kvm_set_user_memory|kvm_clear_dirty_log|global_dirty_changed|kvm_run_exit|kvm_vcpu_ioctl|"
    r"kvm_vm_ioctl|vfio_listener_region_add_ram|vfio_listener_region_add|vfio_listener_region_del)(?![\w=/.-])"
)
FIELDS = (
    r"kvm_set_user_memory (?:AddrSpace#(\d{1,10}) )?Slot#(\d{1,10}) flags=0x([0-9a-f]+) gpa=0x([0-9a-f]+) "
    r"size=0x([0-9a-f]+) ua=0x([0-9a-f]+)(?: guest_memfd=-?\d+ guest_memfd_offset=0x[0-9a-f]+)? ret=(-?\d{1,10})"
    r"(?: restricted_fd=-?\d+ restricted_offset=0x[0-9a-f]+)?\s*$"
)
ROW = re.compile(
    r"(?:(\d{1,10})@(\d{1,20}\.\d+):kvm_(?:set_user_memory AddrSpace#(\d{1,5}) Slot#(\d{1,5}) flags=0x([0-9a-f]{1,8}) "
    r"gpa=0x([0-9a-f]{1,16}) size=0x([0-9a-f]{1,16}) ua=0x([0-9a-f]{1,16})"
    r"(?: guest_memfd=-1 guest_memfd_offset=0x0)? ret=(-?\d{1,10})"
    r"|(run_exit cpu_index \d{1,6}, reason \d{1,6}(?=\n)"
    r"|vcpu_ioctl cpu_index \d{1,6}, type 0x[0-9a-f]{1,8}(?=, arg \S))(?:, arg \S{1,40})?)"
    r"|(.*))\n",
    re.ASCII,
)
"""Lines of QEMU's log backend as it has printed them for years, a group for each field; else the whole line."""
CHANGE, CALL, OTHER = 8, 9, 10
CALLS = re.compile(r"run_exit cpu_index (\d+), reason (\d+)|vcpu_ioctl cpu_index (\d+), type 0x([0-9a-f]+)", re.ASCII)
KVM_RUN, MOST_LANES = "ae80", 1 << 14
SET_USER_MEMORY = re.compile(FIELDS)
CLEAR_DIRTY_LOG = re.compile(r"kvm_clear_dirty_log slot#(\d{1,10}) start 0x([0-9a-f]+) size 0x([0-9a-f]+)\s*$")
GLOBAL_DIRTY = re.compile(r"global_dirty_changed bitmask 0x([0-9a-f]+)\s*$")
RUN_EXIT = re.compile(r"kvm_run_exit cpu_index (\d{1,6}), reason (\d{1,6})\s*$")
VCPU_IOCTL = re.compile(r"kvm_vcpu_ioctl cpu_index (\d{1,6}), type 0x([0-9a-f]{1,8}), arg \S+\s*$")
VM_IOCTL = re.compile(r"kvm_vm_ioctl type 0x([0-9a-f]{1,8}), arg \S+\s*$")
VFIO_ADD = re.compile(
    r"\w+ region_add \[ram\] 0x([0-9a-f]{1,16}) - 0x([0-9a-f]{1,16}) \[(0x[0-9a-f]{1,16}|\(nil\))\]\s*$"
)
VFIO_DEL = re.compile(r"\w+ region_del 0x([0-9a-f]{1,16}) - 0x([0-9a-f]{1,16})\s*$")
SIMPLETRACE = re.compile(r"\w+ -?\d{1,15}\.\d{3}(?: |$)")
"""How a line of simpletrace.py's begins, which ``simpletrace`` reads."""
KEY_VALUE = re.compile(r"\b([a-z_]\w*) ?= ?(-?\d{1,20}|0x[0-9a-f]{1,16})(?=[\s,}]|$)")
FIELDS_BY_NAME = {
    "kvm_set_user_memory": ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr", "ret"),
    "kvm_clear_dirty_log": ("slot", "start", "size"),
    "global_dirty_changed": ("bitmask",),
    "kvm_run_exit": ("cpu_index", "reason"),
    "kvm_vcpu_ioctl": ("cpu_index", "type"),
    "kvm_vm_ioctl": ("type",),
    "vfio_listener_region_add_ram": ("iova_start", "iova_end"),
    "vfio_listener_region_del": ("start", "end"),
}
"""Arguments of each event by the names that ``trace-events`` gives them, which simpletrace.py and LTTng print."""
BEGINS_ANEW = re.compile(
    r"starting up libvirt version|: terminating on signal \d+|shutting down, reason=|^QEMU emulator version "
)
FAILED = "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION"


GUEST_MEMFD_FLAGS = {"4", "5", "6", "7"}
"""Flags, in hex, that have KVM_MEM_GUEST_MEMFD."""
GUEST_MEMFD = re.compile(
    r"\b(?:guest_memfd|restricted_fd|fd)=(\d{1,10}|0x[0-9a-f]{1,8})\b.*?_offset=(0x[0-9a-f]{1,16})"
)


class QemuEvents:
    """What QEMU's events mean, whichever backend printed them."""

    __slots__ = ("_began", "_recording", "_saw_number")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._began: dict[int | None, float] = {}
        """When each thread issued the memslot ioctl of which the change is still to come (``kvm_vm_ioctl``)."""
        self._saw_number: set[int] = set()

    @property
    def is_told_of_calls(self) -> bool:
        """Whether the trace has ``kvm_vm_ioctl`` or ``kvm_vcpu_ioctl`` too."""
        return bool(self._began or self._saw_number)

    def change(self, number: int, text: str, fields: Sequence[str], prefix: Prefix) -> None:
        """A kvm_set_user_memory: address space, slot, flags, gpa, size, ua (without 0x), ret."""
        as_id, slot, flags, gpa, size, hva, ret = fields
        key = int(slot)
        if as_id is not None:
            if key > 0xFFFF or int(as_id) > 0xFFFF:
                self._recording.bad_line("AddrSpace# and Slot# have 16 bits each", number, text)
            key |= int(as_id) << 16
        time, thread = prefix.time, prefix.thread
        recording = self._recording
        if recording.format != "qemu":
            recording.claim("qemu", number, text)
        if prefix.cpu is not None:
            recording.changes_in_ftrace = True
        if prefix.why:
            recording.note(prefix.why, number)
        recording.machines.change(
            number,
            text,
            key=prefix.process,
            slot=key,
            flags=int(flags, 16),
            gpa=int(gpa, 16),
            size=int(size, 16),
            hva=int(hva, 16),
            ret=int(ret),
            time=time,
            thread=thread,
            began=self._began.pop(thread, None) if self._began else None,
            ended=time,
            hides_delete=True,
        )
        if time is not None and self._saw_number:
            self._elsewhere(thread, time)
        if flags in GUEST_MEMFD_FLAGS and (bound := GUEST_MEMFD.search(text)) is not None:
            fd = int(bound[1], 0)
            if fd < 1 << 31:  # -1 as the simple backend prints it
                recording.guest_memfds[number] = fd, int(bound[2], 16)

    def vcpu_ioctl(self, index: int, request: int, prefix: Prefix) -> None:
        """A kvm_vcpu_ioctl, which is about to be made."""
        if prefix.time is None or not self._is_ours(prefix):
            return
        run = self._recording.run
        thread = _vcpu_thread(prefix.thread, index)
        if request_name(request) == "KVM_RUN":
            if thread not in self._saw_number:
                self._saw_number.add(thread)
                run.number(thread, index)
                run.source = "QEMU's kvm_vcpu_ioctl and kvm_run_exit"
                run.run_begin(thread, prefix.time)
            else:
                run.run_begins_again(thread, prefix.time)
        else:
            run.saw(prefix.time)
            self._elsewhere(thread if prefix.thread is None else prefix.thread, prefix.time)

    def run_exit(self, index: int, reason: int, prefix: Prefix) -> None:
        """A kvm_run_exit: KVM_RUN has returned."""
        if prefix.time is None or not self._is_ours(prefix):
            return
        run = self._recording.run
        thread = _vcpu_thread(prefix.thread, index)
        if thread not in self._saw_number:
            self._saw_number.add(thread)
            run.number(thread, index)
            run.source = run.source or "QEMU's kvm_run_exit"
        run.run_end(thread, prefix.time, reason=reason)

    def vm_ioctl(self, request: int, prefix: Prefix) -> None:
        """A kvm_vm_ioctl, which is about to be made."""
        if prefix.time is None:
            return
        name = request_name(request)
        if name.startswith("KVM_SET_USER_MEMORY_REGION"):
            self._began.setdefault(prefix.thread, prefix.time)
        elif name == "KVM_CREATE_IRQCHIP":
            self._recording.run.irqchip = Irqchip.KERNEL
        if self._saw_number:
            self._elsewhere(prefix.thread, prefix.time)

    def by_name(self, number: int, text: str, event: str, values: dict[str, int], prefix: Prefix) -> None:
        """An event of which the arguments stand there by name."""
        missing = [name for name in FIELDS_BY_NAME.get(event, ()) if name not in values]
        if missing and not (event == "vfio_listener_region_add_ram" and "start" in values):
            self._recording.bad_line(f"{event}: no {missing[0]}= can be read", number, text)
        if event == "kvm_set_user_memory":
            as_id = values.get("as", values.get("as_id"))
            hexadecimal = [f"{values[name] & ((1 << 64) - 1):x}" for name in FIELDS_BY_NAME[event][1:5]]
            fields = (
                None if as_id is None else str(as_id),
                str(values["slot"]),
                *hexadecimal,
                str(_int32(values["ret"])),
            )
            self.change(number, text, fields, prefix)  # type: ignore[arg-type]  # None: the slot has it
        elif event == "kvm_clear_dirty_log":
            self.clear_dirty_log(number, text, values["slot"], values["start"], values["size"], prefix)
        elif event == "global_dirty_changed":
            self.global_dirty(number, text, values["bitmask"], prefix)
        elif event == "kvm_run_exit":
            self.run_exit(values["cpu_index"], values["reason"], prefix)
        elif event == "kvm_vcpu_ioctl":
            self.vcpu_ioctl(values["cpu_index"], values["type"], prefix)
        elif event == "kvm_vm_ioctl":
            self.vm_ioctl(values["type"], prefix)
        elif event == "vfio_listener_region_add_ram":
            start = values.get("iova_start", values.get("start", 0))
            end = values.get("iova_end", values.get("end", 0))
            self.dma(number, start, end, values.get("vaddr", 0), prefix)
        elif event == "vfio_listener_region_del":
            self.dma(number, values["start"], values["end"], None, prefix)

    def clear_dirty_log(self, number: int, text: str, slot: int, start: int, npages: int, prefix: Prefix) -> None:
        """A kvm_clear_dirty_log."""
        self._recording.claim("qemu", number, text)
        self._recording.dirty_log_clears.append(
            DirtyLogClear(slot >> 16, slot & 0xFFFF, start, npages, number, prefix.time, prefix.thread)
        )

    def global_dirty(self, number: int, text: str, bitmask: int, prefix: Prefix) -> None:
        """A global_dirty_changed."""
        self._recording.claim("qemu", number, text)
        self._recording.global_dirty_changes.append(GlobalDirtyChange(bitmask, number, prefix.time, prefix.thread))

    def dma(self, number: int, start: int, last: int, hva: int | None, prefix: Prefix) -> None:
        """A vfio_listener_region_add_ram, or with ``hva`` None a vfio_listener_region_del; ``last`` is included."""
        size = max(last - start + 1, 0)
        self._recording.dma_changes.append(DmaChange(start, size, hva, number, prefix.time, prefix.thread))

    def _elsewhere(self, thread: int | None, time: float) -> None:
        if thread in self._saw_number:
            assert thread is not None
            self._recording.run.elsewhere(thread, time)

    def knows(self, thread: int) -> bool:
        """Whether ``thread`` runs a vCPU of the VM that is read, and its number was told."""
        return thread in self._saw_number and self._recording.machines.is_chosen(None, thread)

    def _is_ours(self, prefix: Prefix) -> bool:
        return self._recording.machines.is_chosen(prefix.process, prefix.thread)


def _vcpu_thread(thread: int | None, index: int) -> int:
    """The thread of a vCPU; where the trace does not tell, a number below 0 that stands for vCPU ``index``."""
    return -1 - index if thread is None else thread


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def plain_or_bundles(block: str) -> tuple[array[int] | array[float], ...] | Made:
    """The columns of a block of lines, if all are changes that need no closer look, else its KVM_RUNs put together."""
    rows = ROW.findall(block)
    columns = list(zip(*rows, strict=True))
    plain = None if any(columns[OTHER]) or not all(columns[CHANGE]) else plain_of(columns)
    if plain is not None:
        return tuple(plain)
    made = Bundler()
    parts: dict[str, int | None] = {}
    for row in rows:
        call = row[CALL]
        event = None
        if call:
            if call not in parts:
                parts[call] = _word_of(call)
            event = parts[call]
        thread = int(row[0]) if event is not None else 0
        if event is None:
            made.other(row)
        elif event == BEGIN_WORD and made.last_of(thread) & KIND == BEGIN_WORD:
            time = float(row[1])  # it had returned by now
            made.add((row[0], call), thread, "", [time, time], [ELSEWHERE_WORD, BEGIN_WORD])
        else:
            made.add((row[0], call), thread, "", [float(row[1])], [event])
    return made.made()


def _word_of(call: str) -> int | None:
    """The word of a KVM_RUN's begin or end; None for any other call."""
    match = CALLS.match(call)
    if match is None or (match[3] and match[4] != KVM_RUN):
        return None
    return BEGIN_WORD if match[3] else end_word(int(match[2]))


def plain_of(columns: list[tuple[str, ...]]) -> Plain | None:
    """The same of the groups of ROW, of which each row is a change."""
    flags = {word: int(word, 16) for word in set(columns[4])}
    spaces = {word: int(word) << 16 for word in set(columns[2])}
    if set(columns[CHANGE]) != {"0"} or max(spaces.values()) > 1 << 20 or max(flags.values()) > 3:  # a guest_memfd
        return None
    hexadecimal = itertools.repeat(16)
    gpas, sizes, hvas = (list(map(int, columns[i], hexadecimal)) for i in (5, 6, 7))
    slots = list(map(int, columns[3]))
    times = array("d", list(map(float, columns[1])))
    odd = functools.reduce(operator.or_, itertools.chain(gpas, sizes, hvas))
    if (
        odd & (PAGE_SIZE - 1)
        or odd >> 62
        or max(sizes) > MAX_SIZE
        or max(slots) >= KVM_MEM_SLOTS_NUM
        or not all(map(operator.le, times, itertools.islice(times, 1, None)))
    ):
        return None
    if any(spaces.values()):
        slots = list(map(operator.or_, slots, map(spaces.__getitem__, columns[2])))
    threads = {word: int(word) for word in set(columns[0])}
    shift = itertools.repeat(PAGE_SHIFT)
    return Plain(
        array("I", slots),
        array("Q", list(map(operator.rshift, gpas, shift))),
        array("Q", list(map(operator.rshift, sizes, shift))),
        array("Q", hvas),
        array("I", list(map(flags.__getitem__, columns[4]))),
        array("q", list(map(threads.__getitem__, columns[0]))),
        times,
    )


class QemuReader:
    """Reads QEMU's trace lines; see the module."""

    name = "qemu"
    events = "QEMU's kvm_set_user_memory, kvm_clear_dirty_log or global_dirty_changed (-trace)"

    pattern = ROW

    __slots__ = ("_events", "_lanes", "_recording", "_version")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._events = QemuEvents(recording)
        self._lanes: dict[tuple[str, str], _Lane] = {}
        """Where calls of vCPUs are kept, and as what word: 0 for the begin of a KVM_RUN."""
        self._version = 0
        """What the recorder's and that of the machines were together when the lanes were found."""

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it is one of QEMU's events."""
        if "kvm_" not in text and "vfio_listener" not in text and "global_dirty" not in text:
            if BEGINS_ANEW.search(text):
                self._recording.machines.begins_anew(number)
            return False
        return self._other_line(number, text)

    def finish(self) -> None:
        """Nothing is left open."""

    @property
    def is_curious(self) -> bool:
        """Each of its lines names what it is."""
        return False

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """Take a block of lines as ROW found them."""
        columns, run = list(zip(*rows, strict=True)), self._recording.run
        if not any(columns[OTHER]) and all(columns[CHANGE]):
            self._changes(number, None if run.has_vcpus else plain_of(columns), len(rows), block)
            return 0
        texts: list[str] = []
        machines, lanes = self._recording.machines, self._lanes
        first, last, limit = math.inf, -math.inf, run.next_mark
        for at, row in enumerate(rows, number):
            lane = lanes.get((row[0], row[CALL]))
            if lane is not None:
                time = float(row[1])
                track, times, words, event = lane
                if time <= limit and (event or (words and words[-1] & KIND == RETURNED)):
                    times.append(time)
                    words.append(event or BEGIN_WORD)
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
            if row[CALL]:
                self._call(row[0], row[1], row[CALL])
            elif row[CHANGE]:
                texts = texts or block.split("\n")
                self.line(at, line_of(texts[at - number]))
            else:
                other(at, line_of(row[OTHER]))
            limit = run.next_mark
            if (version := run.version + machines.version) != self._version:
                lanes.clear()  # a change may tell that the thread is another VM's
                self._version = version
        if last > -math.inf:
            run.passed(first, last)
        return 0

    def _call(self, word: str, stamp: str, call: str) -> None:
        """Take a vCPU's call, and find the lane for more of it, if it is a KVM_RUN of the VM that is read."""
        match = CALLS.match(call)
        assert match is not None
        events, thread = self._events, int(word)
        ran, reason, called, request = match.groups()
        prefix = Prefix(None, thread, float(stamp))
        if ran:
            events.run_exit(int(ran), int(reason), prefix)
        else:
            events.vcpu_ioctl(int(called), int(request, 16), prefix)
        if (ran or request == KVM_RUN) and events.knows(thread):
            track = self._recording.run.lane(thread)
            if track is not None and len(self._lanes) < MOST_LANES:
                event = end_word(int(reason)) if ran else 0
                self._lanes[word, call] = track, track.times, track.words, event

    begins_need_ends = True

    @property
    def state(self) -> tuple[int, int] | None:
        """See ``bundles``."""
        return self._recording.run.version + self._recording.machines.version, 0

    def has_lane(self, key: tuple[str, str]) -> bool:
        """Whether such a call was seen, and nothing since says that the next may be more."""
        version, _ = self.state or (-1, 0)
        return key in self._lanes and self._version == version

    def passed(self, newest: float) -> None:
        """See ``bundles``."""

    def take_plain(self, number: int, plain: Plain, block: str) -> int:
        """Take a block of nothing but changes, of which these are the columns; how many lines it has."""
        self._changes(number, plain, len(plain.slots), block)
        return len(plain.slots)

    def _changes(self, number: int, plain: Plain | None, count: int, block: str) -> None:
        """Take a block of nothing but changes: at once, as far as they are plain, else line by line."""
        recording = self._recording
        if not recording.wants_changes:
            return
        texts: list[str] = []
        done = 0
        replay = self._replay_of(plain)
        while done < count:
            if replay is not None and plain is not None:
                done += replay.take(number + done, plain, done)
                if done == count:
                    return
            texts = texts or block.split("\n")
            self.line(number + done, line_of(texts[done]))
            done += 1
            if replay is None and done == 1 < count:  # the first change of all told which VM it is
                replay = self._replay_of(plain)

    def _replay_of(self, plain: Plain | None) -> Replay | None:
        """The VM of a block of plain changes, if all are its own, and nothing else is to be told of them."""
        if plain is None or self._recording.run.has_vcpus or self._events.is_told_of_calls:
            return None
        return self._recording.machines.current_of(None, set(plain.threads))

    def _other_line(self, number: int, text: str) -> bool:
        """Take a line that is neither a plain change nor a plain KVM_RUN."""
        start = text.find("kvm_")
        if start < 0 or "vfio_listener" in text or "global_dirty" in text:
            start = 0
        event = EVENT.search(text, start)
        if event is None:
            if FAILED in text:
                self._recording.note(
                    "QEMU reports a KVM_SET_USER_MEMORY_REGION that KVM refused; its message is no trace event", number
                )
            return False
        prefix, rest = text[: event.start()], text[event.start() :]
        if not prefix and SIMPLETRACE.match(rest):
            return False
        if "-trace" in prefix or "trace:" in prefix:  # a command line
            return False
        if '"' in prefix:
            return self._in_a_string(number, text, event[1])
        return self._event(number, text, event[1], rest, read_prefix(prefix))

    def _event(self, number: int, text: str, event: str, rest: str, prefix: Prefix) -> bool:
        events, wants_changes = self._events, self._recording.wants_changes
        if event == "kvm_set_user_memory" and (match := SET_USER_MEMORY.match(rest)):
            if wants_changes:
                events.change(number, text, match.groups(), prefix)
        elif event == "kvm_run_exit" and (match := RUN_EXIT.match(rest)):
            events.run_exit(int(match[1]), int(match[2]), prefix)
        elif event == "kvm_vcpu_ioctl" and (match := VCPU_IOCTL.match(rest)):
            events.vcpu_ioctl(int(match[1]), int(match[2], 16), prefix)
        elif event == "kvm_vm_ioctl" and (match := VM_IOCTL.match(rest)):
            events.vm_ioctl(int(match[1], 16), prefix)
        elif event == "kvm_clear_dirty_log" and (match := CLEAR_DIRTY_LOG.match(rest)):
            if wants_changes:
                events.clear_dirty_log(number, text, int(match[1]), int(match[2], 16), int(match[3], 16), prefix)
        elif event == "global_dirty_changed" and (match := GLOBAL_DIRTY.match(rest)):
            if wants_changes:
                events.global_dirty(number, text, int(match[1], 16), prefix)
        elif event.startswith("vfio_listener_region_add") and (match := VFIO_ADD.match(rest)):
            hva = 0 if match[3] == "(nil)" else int(match[3], 16)
            events.dma(number, int(match[1], 16), int(match[2], 16), hva, prefix)
        elif event == "vfio_listener_region_del" and (match := VFIO_DEL.match(rest)):
            events.dma(number, int(match[1], 16), int(match[2], 16), None, prefix)
        elif event == "vfio_listener_region_add":
            return False  # an older tree's, or one that was skipped
        elif "lot#" not in rest and (values := {name: integer(value) for name, value in KEY_VALUE.findall(rest)}):
            if wants_changes or event.startswith("kvm_v") or event == "kvm_run_exit":
                events.by_name(number, text, event, values, prefix)
        elif wants_changes or event != "kvm_set_user_memory":
            self._recording.bad_line(f"{event}: its fields cannot be read", number, text)
        return True

    def _in_a_string(self, number: int, text: str, event: str) -> bool:
        """An event inside quotes: a log of JSON objects (KubeVirt's, say) has it as a value; else it is said."""
        if text.lstrip().startswith("{"):
            try:
                values = json.loads(text)
            except ValueError:
                values = None
            for value in values.values() if isinstance(values, dict) else ():
                if isinstance(value, str) and (match := EVENT.search(value)) and '"' not in value:
                    prefix = read_prefix(value[: match.start()])
                    return self._event(number, text, match[1], value[match.start() :], prefix)
        if event == "kvm_set_user_memory":
            self._recording.note(f"{event} is named inside a string (strace's write, say), which is not read", number)
        return False
