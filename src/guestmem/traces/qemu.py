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

import json
import math
import re
from array import array
from typing import TYPE_CHECKING

from .columns import NO_THREAD, Plain
from .event_words import KIND
from .lines import line_of
from .qemu_block import CALL, CALLS, CHANGE, KVM_RUN, OTHER, ROW, plain_of
from .qemu_events import QemuEvents, carry_out
from .qemu_prefix import Prefix, read_prefix
from .recorder import BEGIN_WORD, RETURNED, end_word
from .requests import integer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .event_pieces import EventChanges
    from .qemu_log import LogBlock
    from .recording import Other, Recording, Rows
    from .replay import Replay
    from .whereabouts import Track

    _Lane = tuple[Track, array[float], array[int], int]

__all__ = ["KEY_VALUE", "QemuReader"]

EVENT = re.compile(
    r"(?<![\w=/.,-])(kvm_set_user_memory|kvm_clear_dirty_log|global_dirty_changed|kvm_run_exit|kvm_vcpu_ioctl|"
    r"kvm_vm_ioctl|vfio_listener_region_add_ram|vfio_listener_region_add|vfio_listener_region_del)(?![\w=/.-])"
)
FIELDS = (
    r"kvm_set_user_memory (?:AddrSpace#(\d{1,10}) )?Slot#(\d{1,10}) flags=0x([0-9a-f]+) gpa=0x([0-9a-f]+) "
    r"size=0x([0-9a-f]+) ua=0x([0-9a-f]+)(?: guest_memfd=-?\d+ guest_memfd_offset=0x[0-9a-f]+)? ret=(-?\d{1,10})"
    r"(?: restricted_fd=-?\d+ restricted_offset=0x[0-9a-f]+)?\s*$"
)
MOST_LANES = 1 << 14
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
KEY_VALUE = re.compile(r"\b([a-z_]\w*) ?= ?(-?\d{1,20}|0x[0-9a-f]{1,16})(?=[\s,}]|$)")
SIMPLETRACE = re.compile(r"\w+ -?\d{1,15}\.\d{3}(?: |$)")
"""How a line of simpletrace.py's begins, which ``simpletrace`` reads."""
BEGINS_ANEW = re.compile(
    r"starting up libvirt version|: terminating on signal \d+|shutting down, reason=|^QEMU emulator version "
)
FAILED = "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION"


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
            lines = range(number, number + len(rows))
            self._changes(lines, number, None if run.has_vcpus else plain_of(columns), block)
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
    def state(self) -> tuple[int, int]:
        """See ``event_pieces``: stamps may have any length."""
        return self._recording.run.version + self._recording.machines.version, 0

    def has_lane(self, key: tuple[str, str]) -> bool:
        """Whether its thread runs a vCPU of the VM that is read."""
        thread = int(key[0])
        return self._events.knows(thread) and self._recording.run.lane(thread) is not None

    def may_take(self, changes: EventChanges) -> bool:
        """See ``event_pieces``."""
        return self._events.may_take(changes)

    def carry_out(self, number: int, changes: EventChanges) -> int:
        """See ``event_pieces``."""
        return carry_out(self._recording, number, changes)

    def take_plain(self, number: int, plain: Plain, block: str) -> int:
        """Take a block of nothing but changes, of which these are the columns; how many lines it has."""
        count = len(plain.slots)
        self._changes(range(number, number + count), number, plain, block)
        return count

    def take_log(self, number: int, log: LogBlock, block: str, other: Other) -> int:
        """Take the lines of ``block`` that may say something; how many do not."""
        texts: list[str] = []
        silent: int = log["lines"]
        for each in log["speak"]:
            if isinstance(each, int):
                texts = texts or block.split("\n")
                other(number + each, line_of(texts[each]))
                silent -= 1
            else:
                places, columns = each
                self._changes([number + place for place in places], number, Plain.of_bytes(columns), block)
                silent -= len(places)
        return silent

    def _changes(self, lines: Sequence[int], number: int, plain: Plain | None, block: str) -> None:
        """Take changes that stand on these lines of ``block``, of which the first has ``number``.

        As far as they are plain, at once, else line by line.
        """
        recording = self._recording
        if not recording.wants_changes:
            return
        texts: list[str] = []
        done, count = 0, len(lines)
        replay = self._replay_of(plain)
        while done < count:
            if replay is not None and plain is not None:
                taken = replay.take(lines[done:], plain, done)
                done += taken
                if taken:  # of no vCPU anything is known, so only what the last one did matters
                    recording.run.change_at(plain.times[done - 1], plain.npages[done - 1] == 0)
                if done == count:
                    return
            texts = texts or block.split("\n")
            self.line(lines[done], line_of(texts[lines[done] - number]))
            done += 1
            if replay is None and done == 1 < count:  # the first change of all told which VM it is
                replay = self._replay_of(plain)

    def _replay_of(self, plain: Plain | None) -> Replay | None:
        """The VM of a block of plain changes, if all are its own, and nothing else is to be told of them."""
        if plain is None or self._recording.run.has_vcpus or self._events.is_told_of_calls:
            return None
        threads = {None if thread == NO_THREAD else thread for thread in set(plain.threads)}
        return self._recording.machines.current_of(None, threads)

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
