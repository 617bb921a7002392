"""``perf trace``: system calls as strace shows them, and tracepoints, on perf's clock.

``MILLISECONDS ( DURATION ms): comm/TID ioctl(fd: 12<anon_inode:kvm-vcpu:0>, cmd: KVM_RUN) = 0``; the time counts from
the first line, or is the clock's own with ``-T``. A call that another line interrupts ends in ``...``, and goes on in a
line with ``... [continued]: ioctl()``, which has the stamp of the begin and the duration. Tracepoints (``-e
kvm:kvm_entry``) stand as ``kvm:kvm_entry(vcpu_id: 0, …)``, in older versions as ``kvm:kvm_entry:vcpu 0, …`` (Linux
``tools/perf/builtin-trace.c``, ``trace/beauty/ioctl.c``). The slot of a KVM_SET_USER_MEMORY_REGION is not shown, so
this tells run state only.
"""

from __future__ import annotations

import operator
import re
from itertools import repeat
from typing import TYPE_CHECKING

from .lines import line_of
from .pieces import Pieces, piece_of, stretches_of
from .recorder import end_word
from .requests import request_name

if TYPE_CHECKING:
    from .pieces import Piece, PieceChanges
    from .recording import Other, Recording, Rows

__all__ = ["PerfTraceReader", "pieces_of"]

MOST_KEPT = 4096
LEADER = re.compile(
    r"\s*(?:(?P<time>\d{1,15}\.\d{3,9}) )?\(\s*(?:(?P<duration>\d{1,12}\.\d{1,9}) ms|\??)\s*\): (?P<rest>.*)$",
    re.DOTALL,
)
TRACEPOINT = re.compile(
    r"\s*(?P<time>\d{1,15}\.\d{3,9}) (?:\(\s*\): )?(?:(?P<comm>[^\n]{0,40}?)[/:](?P<thread>\d{1,10}) )?"
    r"kvm:(?P<event>kvm_entry|kvm_exit|kvm_userspace_exit)[(:](?P<fields>[^\n]*)"
)
CALL = re.compile(
    r"(?:(?P<comm>[^\n(]{0,40}?)[/:](?P<thread>\d{1,10})\s+)?(?P<continued>\.\.\. \[continued\]: )?"
    r"ioctl\((?P<rest>[^\n]*)"
)
ROW = re.compile(r"(?: *(\d{1,15}\.\d{3,9}) \( *(\d{1,12}\.\d{1,9}) ms\): (.*)|(.*))\n")
"""What returned on its line: stamp, duration, thread and call; else the whole line."""
RUN = re.compile(
    r"(?:[^\n(]{0,40}?[/:])(\d{1,10}) +ioctl\(fd: \d{1,6}(?:<[^>)\n]{0,80}>)?, cmd: KVM_RUN\) {1,80}= -?\d{1,10}"
    r"(?: (E[A-Z]+)[^\n]{0,80})?"
)
CMD = re.compile(r"\bcmd: ([\w() ,]{1,40}?)(?:, arg: |\))")
RETURNED = re.compile(r"\)\s{0,80}= (-?\d{1,10})(?: (E[A-Z]+))?")
FIELD = re.compile(r"\b(vcpu_id|vcpu|reason|exit_reason|errno|immediate_exit)[:=]? ?(-?\d{1,10})")


class _Runs(dict[str, "tuple[str, int] | None"]):
    """The thread and how its KVM_RUN ended, as ``end_word`` says it, by what a line tells of it; few that differ."""

    def __missing__(self, text: str) -> tuple[str, int] | None:
        match = RUN.fullmatch(text)
        found = None if match is None else (match[1], end_word(None, match[2] or ""))
        if len(self) < MOST_KEPT:
            self[text] = found
        return found


class _Durations(dict[str, float]):
    """Milliseconds as seconds; there are few that differ."""

    def __missing__(self, text: str) -> float:
        seconds = float(text) / 1e3
        if len(self) < MOST_KEPT:
            self[text] = seconds
        return seconds


RUNS, DURATIONS = _Runs(), _Durations()


def pieces_of(block: str) -> Pieces:
    """The KVM_RUNs of a block put together."""
    stamps, durations, texts, _ = zip(*ROW.findall(block), strict=True)
    runs = list(map(RUNS.__getitem__, texts))
    found: Pieces = []
    for start, stop, plain in stretches_of(runs):
        piece = None
        if plain:
            here = slice(start, stop)
            begins = list(map(operator.truediv, map(float, stamps[here]), repeat(1e3)))
            ends = list(map(operator.add, begins, map(DURATIONS.__getitem__, durations[here])))
            threads, words = zip(*runs[here], strict=True)
            piece = piece_of(threads, begins, ends, words, {(thread, "") for thread in set(threads)}, 0)
        found.append(stop - start if piece is None else piece)
    return found


class PerfTraceReader:
    """Reads perf trace's lines; see the module."""

    name = "perf trace"
    events = "KVM_RUN in perf trace"

    pattern = ROW

    __slots__ = ("_in_run", "_known", "_recording")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._in_run: set[int] = set()
        self._known: set[int] = set()
        """Threads of which there was a KVM_RUN on one line."""

    def line(self, number: int, text: str) -> bool:
        """Take one line; True if it tells of a vCPU."""
        if "ioctl(" in text:
            match = LEADER.match(text) if "cmd: " in text or "[continued]" in text else None
            return match is not None and self._ioctl(number, text, match)
        if "kvm:kvm_" in text and (match := TRACEPOINT.match(text)):
            return self._tracepoint(match)
        return False

    @property
    def is_curious(self) -> bool:
        """Each of its lines names what it is."""
        return False

    def rows(self, number: int, rows: Rows, block: str, other: Other) -> int:
        """Take a block of lines as ROW found them."""
        texts: list[str] = []
        run = self._recording.run
        for at, (stamp, duration, text, line) in enumerate(rows, number):
            found = RUNS[text]
            if found is not None:
                thread, begin = int(found[0]), float(stamp) / 1e3
                self._known.add(thread)
                run.source = "KVM_RUN in perf trace"
                run.whole_run(thread, begin, begin + float(duration) / 1e3, found[1])
            elif text:
                texts = texts or block.split("\n")
                other(at, line_of(texts[at - number]))
            else:
                other(at, line_of(line))
        return 0

    def fits(self, piece: Piece) -> bool:
        """See ``pieces``."""
        return self._known.issuperset(piece.threads)

    def is_outside(self, thread: int) -> bool:
        """See ``pieces``: it makes no changes that can be read."""
        return thread in self._known

    def carry_out(self, number: int, piece: Piece, changes: PieceChanges) -> int:
        """See ``pieces``: its pieces hold none, since perf trace shows no region."""
        raise NotImplementedError

    def passed(self, newest: float) -> None:
        """See ``pieces``."""

    def finish(self) -> None:
        """Say how fine the clock is."""
        if self._in_run or self._recording.run.source == "KVM_RUN in perf trace":
            self._recording.run.resolution = 1e-6

    def _ioctl(self, number: int, text: str, leader: re.Match[str]) -> bool:
        call = CALL.match(leader["rest"])
        if call is None:
            return False
        if leader["time"] is None or call["thread"] is None:
            if "KVM_" in text:
                self._recording.note("a line of perf trace without time or thread, which is not read", number)
            return False
        thread, time = int(call["thread"]), float(leader["time"]) / 1e3
        run = self._recording.run
        returned = RETURNED.search(call["rest"])
        errno = returned[2] or "" if returned else ""
        if call["continued"]:
            if thread not in self._in_run:
                return False
            self._in_run.discard(thread)
            # Such a line has the stamp of the begin.
            run.run_end(thread, time + float(leader["duration"] or 0) / 1e3, errno=errno)
            return True
        cmd = CMD.search(call["rest"])
        name = _request(cmd[1]) if cmd else ""
        if name.startswith("KVM_SET_USER_MEMORY_REGION"):
            self._recording.note("a memslot change, of which perf trace does not show the slot", number)
        if name != "KVM_RUN":
            return False
        run.source = "KVM_RUN in perf trace"
        run.run_begin(thread, time)
        if leader["duration"] and returned:
            run.run_end(thread, time + float(leader["duration"]) / 1e3, errno=errno)
        else:
            self._in_run.add(thread)
        return True

    def _tracepoint(self, match: re.Match[str]) -> bool:
        fields = dict(FIELD.findall(match["fields"][:300]))
        index = fields.get("vcpu_id", fields.get("vcpu"))
        if match["thread"] is None and index is None:
            return False
        thread = int(match["thread"]) if match["thread"] else -1 - int(index or 0)
        time, run = float(match["time"]) / 1e3, self._recording.run
        if match["event"] == "kvm_entry":
            immediate = fields.get("immediate_exit", "0") != "0" or "[immediate exit]" in match["fields"]
            run.entry(thread, time, index=None if index is None else int(index), immediate=immediate)
        elif match["event"] == "kvm_exit":
            run.exit(thread, time, index=None if index is None else int(index))
        else:
            reason = fields.get("reason")
            failed = int(fields.get("errno", 0))
            run.user_exit(
                thread,
                time,
                reason=None if reason is None or failed else int(reason),
                errno="an error" if failed else "",
            )
        return True


def _request(text: str) -> str:
    """The request's name, as ``KVM_RUN``, ``0xae80``, or ``(NONE, 0xae, 0x80, 0)``."""
    text = text.strip()
    if text.startswith("KVM_"):
        return text
    if text.startswith("0x"):
        try:
            return request_name(int(text, 16))
        except ValueError:
            return ""
    if match := re.match(r"\((?:\w+), 0xae, (0x[0-9a-f]{1,2}), (0x[0-9a-f]{1,4}|0)\)?$", text, re.IGNORECASE):
        return request_name(int(match[2], 16) << 16 | 0xAE00 | int(match[1], 16))
    return ""
