"""Takes what readers learn about vCPUs, event by event, and makes a RunState of it.

A reader says what it sees, and no more than that; what follows from it is worked out in ``whereabouts``. An event
costs twelve bytes.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from bisect import bisect_right
from typing import TYPE_CHECKING

from ..errors import TraceError
from .event_words import KIND, word
from .evidence import Event, Irqchip, Loss, Where, exit_meaning, userspace_exit_meaning
from .run_state import RunState, Vcpu
from .whereabouts import Kinds, Track

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BEGIN_WORD",
    "ELSEWHERE_WORD",
    "RETURNED",
    "RunStateRecorder",
    "end_word",
    "entry_word",
    "exit_word",
    "user_exit_word",
]

MOST_VCPUS = 1 << 14
"""More than any KVM_MAX_VCPUS; a number above is damage, not a vCPU."""
BEGIN_WORD, ELSEWHERE_WORD = word(Event.RUN_BEGIN), word(Event.ELSEWHERE)
RETURNED = int(Event.RUN_END)


@functools.lru_cache(maxsize=4096)
def entry_word(cpu: int | None, immediate: bool = False) -> int:
    """A kvm_entry as a track keeps it."""
    return word(Event.ENTRY, cpu=cpu, immediate=immediate)


@functools.lru_cache(maxsize=4096)
def exit_word(cpu: int | None, reason: str) -> int:
    """A kvm_exit."""
    return word(Event.EXIT, exit_meaning(reason), cpu)


@functools.lru_cache(maxsize=4096)
def user_exit_word(cpu: int | None, reason: str | int | None = None, errno: str = "") -> int:
    """A kvm_userspace_exit."""
    return word(Event.USER_EXIT, userspace_exit_meaning(reason, errno), cpu)


@functools.lru_cache(maxsize=4096)
def end_word(reason: str | int | None = None, errno: str = "") -> int:
    """The end of a KVM_RUN."""
    return word(Event.RUN_END, userspace_exit_meaning(reason, errno), None)


class RunStateRecorder:
    """What one recording tells about vCPUs; ``thread`` is the thread that runs one, ``time`` seconds, ``cpu`` a number.

    Attributes that a reader sets:

    - ``source``: where the knowledge is from, in words;
    - ``resolution``: the unit of a stamp's last place, in seconds (1e-6 for six places); each stamp is taken to be off
      by at most that;
    - ``irqchip``: whether interrupt controllers are in the kernel;
    - ``overwritten``: whether the recorder overwrote its oldest events, by its own header: then nothing is known before
      the first event that each CPU has left, so ``saw`` is to be told of every line that has a CPU;
    - ``forgets``: whether events far from any change are dropped, so that memory grows with changes, not with lines;
      then ``change_at`` is to be told of each change, and ``horizon`` seconds after it are kept;
    - ``expected``: how many vCPUs the VM has, if the recording tells, or None.

    ``next_mark`` is the time of the next change that another recording tells of; ``last_on`` when each CPU was last
    seen. What ``lane`` says holds as long as ``version`` stays the same.
    """

    __slots__ = (
        "_created",
        "_first_on",
        "_index",
        "_kinds",
        "_losses",
        "_marks",
        "_open_losses",
        "_tracks",
        "_whole",
        "expected",
        "first",
        "forgets",
        "horizon",
        "irqchip",
        "last",
        "last_on",
        "next_mark",
        "overwritten",
        "resolution",
        "source",
        "version",
    )

    def __init__(self) -> None:
        self._tracks: dict[int, Track] = {}
        self._index: dict[int, int] = {}
        self._created: dict[int, float] = {}
        self._first_on: dict[int, float] = {}
        self.last_on: dict[int, float] = {}
        self._losses: list[Loss] = []
        self._open_losses: dict[int | None, Loss] = {}
        """Markers after which no event of their CPU was seen yet."""
        self._kinds = 0
        self._marks: list[float] = []
        self.next_mark = math.inf
        self._whole = False
        """Whether the last change gave memory, so that none is missing since."""
        self.forgets = False
        self.horizon = 0.05
        self.expected: int | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.source = ""
        self.resolution = 1e-6
        self.irqchip = Irqchip.UNKNOWN
        self.overwritten = False
        self.version = 0

    def saw(self, time: float, cpu: int | None = None) -> None:
        """Something was recorded at ``time``, on ``cpu`` if that is known: the recording knows at least until then."""
        if self.first is None or time < self.first:
            self.first = time
        if self.last is None or time > self.last:
            self.last = time
        if cpu is not None:
            if cpu not in self._first_on:
                self._first_on[cpu] = time
            self.last_on[cpu] = time
        if self._open_losses and cpu in self._open_losses:
            loss = self._open_losses.pop(cpu)
            self._losses.append(Loss(loss.cpu, loss.after, time, loss.text))

    @property
    def recorded(self) -> tuple[str, ...]:
        """The tracepoints of which there was an event, by name."""
        names = (("kvm_entry", Event.ENTRY), ("kvm_exit", Event.EXIT), ("kvm_userspace_exit", Event.USER_EXIT))
        return tuple(name for name, kind in names if self._kinds >> kind & 1)

    @property
    def has_vcpus(self) -> bool:
        """Whether an event of a vCPU was seen."""
        return bool(self._tracks)

    def change_at(self, time: float | None, deletes: bool | None = None) -> None:
        """A memslot changes here, at ``time`` if that is known: what happens around it is kept.

        ``deletes``: whether it takes memory away. Between one that does not and one that does none was missing.
        """
        if self.forgets and self._tracks:
            until = (self.last or 0.0 if time is None else time) + self.horizon
            quiet = bool(deletes) and self._whole
            for track in self._tracks.values():
                track.keep(until, quiet=quiet)
        self._whole = deletes is False

    def changes_are_at(self, times: Iterable[float]) -> None:
        """The changes are in another recording, at these times of this one's clock: forget what is far from them."""
        self._marks = sorted(times, reverse=True)
        self.next_mark = self._marks.pop() if self._marks else math.inf
        self.forgets = True

    def last_mark_before(self, time: float) -> float:
        """The last of the changes in another recording before ``time``, which is after ``next_mark``. O(log n)."""
        marks = self._marks
        i = bisect_right(marks, -time, key=operator.neg)
        return marks[i] if i < len(marks) else self.next_mark

    def pass_marks(self, time: float) -> None:
        """The first event after ``next_mark`` is here, at ``time``."""
        mark = self.next_mark
        while self._marks and mark < time:
            mark = self._marks.pop()
        self.next_mark = mark if mark >= time else math.inf
        self.change_at(time)

    def number(self, thread: int, index: int) -> None:
        """``thread`` runs vCPU number ``index``."""
        if 0 <= index < MOST_VCPUS and self._index.get(thread) != index:
            self._index[thread] = index
            self.version += 1

    def vcpu(self, thread: int) -> None:
        """``thread`` is a vCPU's, though it may never have been inside."""
        if thread not in self._tracks:
            self._new_track(thread)

    def _new_track(self, thread: int) -> Track:
        self._tracks[thread] = track = Track()
        if self.forgets:
            track.keep(-math.inf)
        return track

    def created(self, index: int, time: float) -> None:
        """VCPU number ``index`` was made, and cannot have run before ``time`` (KVM_CREATE_VCPU)."""
        if 0 <= index < MOST_VCPUS:
            self._created[index] = time

    def entry(
        self, thread: int, time: float, cpu: int | None = None, *, index: int | None = None, immediate: bool = False
    ) -> None:
        """kvm_entry; ``immediate`` if it says ``[immediate exit]``, so that no instruction runs."""
        self._kinds |= 1 << Event.ENTRY
        self._note(thread, time, cpu, index, entry_word(cpu, immediate))

    def exit(
        self, thread: int, time: float, cpu: int | None = None, *, index: int | None = None, reason: str = ""
    ) -> None:
        """kvm_exit, with its reason as the tracepoint prints it."""
        self._kinds |= 1 << Event.EXIT
        self._note(thread, time, cpu, index, exit_word(cpu, reason))

    def user_exit(
        self, thread: int, time: float, cpu: int | None = None, *, reason: str | int | None = None, errno: str = ""
    ) -> None:
        """kvm_userspace_exit; ``reason`` a KVM_EXIT_* name or number, ``errno`` if it says ``error`` or ``restart``."""
        self._kinds |= 1 << Event.USER_EXIT
        self._note(thread, time, cpu, None, user_exit_word(cpu, reason, errno))

    def run_begin(self, thread: int, time: float) -> None:
        """A KVM_RUN begins: its call had not begun before ``time``."""
        self._note(thread, time, None, None, BEGIN_WORD)
        self._tracks[thread].calls = True

    def run_begins_again(self, thread: int, time: float) -> None:
        """``run_begin`` of a thread that had one: if no end of it was seen, it had returned by now at the latest."""
        words = self._tracks[thread].words if thread in self._tracks else ()
        if not words or words[-1] & KIND != RETURNED:
            self.elsewhere(thread, time)
        self._note(thread, time, None, None, BEGIN_WORD)

    def run_end(self, thread: int, time: float, *, reason: str | int | None = None, errno: str = "") -> None:
        """The KVM_RUN had returned at ``time``; with which exit or error, if the recording tells.

        ``immediate_exit`` shows as ``errno="EINTR"``.
        """
        self._note(thread, time, None, None, end_word(reason, errno))
        self._tracks[thread].calls = True

    def whole_run(self, thread: int, begin: float, end: float, word: int) -> None:
        """``run_begin`` and ``run_end`` at once; ``word`` is what ``end_word`` says of the end."""
        self._note(thread, begin, None, None, BEGIN_WORD)
        self._note(thread, end, None, None, word)
        self._tracks[thread].calls = True

    def lane(self, thread: int, cpu: int | None = None) -> Track | None:
        """Where events of ``thread`` may be added by the reader itself, as a recording has them by the million.

        None if an event of it says more than itself: its first or its CPU's, or the first after a loss. To add is
        ``times.append``, ``words.append`` with BEGIN_WORD or what ``end_word``, ``entry_word`` … say, and ``forget`` if
        there are more than ``full``; all for times up to ``next_mark`` only. Of many such events ``passed`` is to be
        told, and ``last_on`` of each, before anything else.
        """
        if self._open_losses or self.first is None or (cpu is not None and cpu not in self.last_on):
            return None
        return self._tracks.get(thread)

    def says_no_more(self, thread: int, cpu: int, event: int, index: int | None) -> bool:
        """Whether such an event, with its word, may be added to the ``lane``: all that it says is known."""
        if self.lane(thread, cpu) is None or not self._kinds >> (event & KIND) & 1:
            return False
        return index is None or self._index.get(thread) == index

    def passed(self, first: float, last: float) -> None:
        """Events were added to lanes: of no earlier and no later time than these."""
        if self.first is None or first < self.first:
            self.first = first
        if self.last is None or last > self.last:
            self.last = last

    def elsewhere(self, thread: int, time: float) -> None:
        """``thread`` was in user space at ``time``: it did something else. Tell it of threads that run vCPUs only."""
        self._note(thread, time, None, None, ELSEWHERE_WORD)

    def known_from(self, thread: int, time: float) -> None:
        """``thread`` was in user space from ``time`` until its first event."""
        self.vcpu(thread)
        track = self._tracks[thread]
        track.known_from = min(track.known_from, time)

    def lost(self, cpu: int | None = None, text: str = "") -> None:
        """A loss marker stands here: events of ``cpu`` were dropped between its events around the marker.

        None: of which CPU is not told, so they can be missing anywhere.
        """
        if cpu is None:
            self.lost_between(-math.inf, math.inf, None, text)
        elif cpu not in self._open_losses:
            self.version += 1
            self._open_losses[cpu] = Loss(cpu, self.last_on.get(cpu, -math.inf), math.inf, text)

    def lost_between(self, after: float, before: float, cpu: int | None = None, text: str = "") -> None:
        """Events of ``cpu`` (None: of any) were dropped somewhere in ``(after, before)``, in seconds."""
        self._losses.append(Loss(cpu, after, before, text))

    def _note(self, thread: int, time: float, cpu: int | None, index: int | None, event: int) -> None:
        if cpu is not None and cpu in self.last_on and not self._open_losses and self.first is not None:
            self.last_on[cpu] = time
            if time > self.last:  # type: ignore[operator]  # set with first
                self.last = time
            elif time < self.first:
                self.first = time
        else:
            self.saw(time, cpu)
        if time > self.next_mark:
            self.pass_marks(time)
        track = self._tracks.get(thread)
        if track is None:
            track = self._new_track(thread)
        track.times.append(time)
        track.words.append(event)
        if len(track.times) > track.full:
            track.forget()
        if index is not None and self._index.get(thread) != index:
            self.number(thread, index)

    def finish(self, path: str) -> RunState | None:
        """All that was taken, or None if no vCPU was seen.

        Raises TraceError if one vCPU number was inside on two threads at once: then the trace is of two VMs.
        """
        if self.first is None or self.last is None or not self._tracks:
            return None
        losses = [*self._losses, *self._open_losses.values()]
        if self.overwritten:
            losses += [Loss(cpu, -math.inf, first, "overwritten") for cpu, first in self._first_on.items()]
            if not self._first_on:
                losses.append(Loss(None, -math.inf, math.inf, "overwritten"))
        tracks = {}
        for thread, track in self._tracks.items():
            track.sort()
            index = self._index.get(thread)
            if index in self._created:
                track.known_from = min(track.known_from, self._created[index])
            tracks[Vcpu(thread, index)] = track
        seen = {self._index[thread] for thread in self._tracks if thread in self._index}
        possible = set(self._created) | (set(range(max(seen) + 1)) if seen else set())
        if self.expected is not None:
            possible |= set(range(self.expected))
        unnumbered = sum(thread not in self._index for thread in self._tracks)
        state = RunState.of_tracks(
            tracks,
            first=self.first,
            last=self.last,
            source=self.source,
            kinds=Kinds(
                bool(self._kinds >> Event.ENTRY & 1),
                bool(self._kinds >> Event.EXIT & 1),
                bool(self._kinds >> Event.USER_EXIT & 1),
            ),
            losses=losses,
            resolution=self.resolution,
            irqchip=self.irqchip,
            missing=tuple(sorted(possible - seen)[unnumbered:]),
        )
        _refuse_two_vms(state, path)
        return state


def _refuse_two_vms(state: RunState, path: str) -> None:
    """Raise TraceError if one vCPU number was inside on two threads at once."""
    by_index: dict[int, list[Vcpu]] = {}
    for vcpu in state.vcpus:
        if vcpu.index is not None:
            by_index.setdefault(vcpu.index, []).append(vcpu)
    for index, same in by_index.items():
        if len(same) == 1:
            continue
        inside = sorted(
            (piece.start, piece.end, vcpu.thread)
            for vcpu in same
            for piece in state.stretches(vcpu)
            if piece.where in (Where.GUEST, Where.RUN)
        )
        for (_, end, thread), (start, _, other) in itertools.pairwise(inside):
            if start < end and thread != other:
                raise TraceError(
                    f"vCPU {index} is inside the guest on threads {thread} and {other} at once, at {start:.6f}: "
                    "the run state is of two VMs; record one",
                    path=path,
                )
