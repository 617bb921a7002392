"""Where each vCPU was, as far as a trace tells.

KVM says so with ``KVM_RUN`` (strace, QEMU's kvm_vcpu_ioctl and kvm_run_exit) and with its tracepoints ``kvm_entry``,
``kvm_exit`` and ``kvm_userspace_exit`` (Linux ``include/trace/events/kvm.h``, ``arch/x86/kvm/trace.h``). What each
proves: ``evidence``. Times are seconds of the trace's own clock.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, NamedTuple

from .event_words import word
from .evidence import Cause, Event, ExitMeaning, Irqchip, Loss, Stretch, Where
from .losses import Losses
from .whereabouts import INSIDE, Kinds, Track

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .returns import Return

__all__ = ["RunState", "Vcpu"]


class Vcpu(NamedTuple):
    """A vCPU: the thread that runs it, and its number where the trace tells it. A thread of 0 is not known.

    >>> str(Vcpu(21671, 0)), str(Vcpu(21671)), str(Vcpu(0, 3))
    ('vCPU 0 (thread 21671)', 'vCPU thread 21671', 'vCPU 3')
    """

    thread: int
    index: int | None = None  # type: ignore[assignment]  # what a tuple has by that name is not missed

    def __str__(self) -> str:
        if self.index is None:
            return f"vCPU thread {self.thread}"
        return f"vCPU {self.index} (thread {self.thread})" if self.thread else f"vCPU {self.index}"


class RunState:
    """Per vCPU, where it was and when; made from a recording by a ``RunStateRecorder``, or from stretches.

    ``RunState(stretches, first=…, last=…)`` takes stretches ``[entry, exit)`` in guest mode, sorted and disjoint, for
    each vCPU, which was in user space otherwise from ``first`` to ``last``.

    ``source`` says where the knowledge is from; ``losses`` where the recorder dropped events; ``resolution`` by how
    much a stamp may be off, in seconds; ``irqchip`` whether a vCPU in KVM_RUN may be halted; ``missing`` are numbers of
    vCPUs that are known to exist and of which nothing was recorded.

    >>> state = RunState({Vcpu(7, 0): [(1.0, 2.0), (3.0, 4.0)]}, first=0.0, last=5.0)
    >>> [(each.start, each.where.value) for each in state.stretches(Vcpu(7, 0), 0.5, 4.5)]
    [(0.0, 'user'), (1.0, 'guest'), (2.0, 'user'), (3.0, 'guest'), (4.0, 'user')]
    """

    __slots__ = (
        "_by_thread",
        "_tracks",
        "first",
        "irqchip",
        "kinds",
        "last",
        "losses",
        "missing",
        "resolution",
        "source",
        "vcpus",
    )

    def __init__(
        self,
        stretches: Mapping[Vcpu, Iterable[tuple[float, float]]],
        *,
        first: float,
        last: float,
        source: str = "",
        losses: Sequence[Loss] = (),
        resolution: float = 0.0,
    ) -> None:
        tracks = {}
        left = word(Event.EXIT, ExitMeaning("", Cause.OUTSIDE, looks_at_memory=False))
        for vcpu, pairs in stretches.items():
            track = tracks[vcpu] = Track(known_from=first)
            for start, end in pairs:
                track.add(start, word(Event.ENTRY))
                track.add(end, left)
        self._set(tracks, Kinds(entries=True, exits=True, user_exits=True), losses, Irqchip.UNKNOWN, ())
        self.first, self.last, self.source, self.resolution = first, last, source, resolution

    def _set(
        self,
        tracks: Mapping[Vcpu, Track],
        kinds: Kinds,
        losses: Sequence[Loss],
        irqchip: Irqchip,
        missing: tuple[int, ...],
    ) -> None:
        self._tracks = dict(sorted(tracks.items(), key=lambda item: item[0].thread))
        self._by_thread = {vcpu.thread: track for vcpu, track in self._tracks.items()}
        self.vcpus = tuple(self._tracks)
        """All vCPUs of which there is an event, by thread."""
        self.kinds, self.losses, self.irqchip, self.missing = kinds, Losses(losses), irqchip, missing

    @classmethod
    def of_tracks(
        cls,
        tracks: Mapping[Vcpu, Track],
        *,
        first: float,
        last: float,
        source: str,
        kinds: Kinds,
        losses: Sequence[Loss],
        resolution: float,
        irqchip: Irqchip,
        missing: tuple[int, ...] = (),
    ) -> RunState:
        """The run state that a recorder's events make."""
        state = cls({}, first=first, last=last, source=source, resolution=resolution)
        state._set(tracks, kinds, losses, irqchip, missing)
        return state

    @property
    def events(self) -> int:
        """How many events of vCPUs are known."""
        return sum(len(track.times) for track in self._tracks.values())

    def stretches(self, vcpu: Vcpu, start: float = -math.inf, end: float = math.inf) -> tuple[Stretch, ...]:
        """Where ``vcpu`` was from ``start`` to ``end``: pieces that follow one another, the outermost not clipped.

        Everything is UNKNOWN for a vCPU that is not known. O(log n + pieces).
        """
        track = self._tracks.get(vcpu)
        if track is None:
            return (Stretch(-math.inf, math.inf, Where.UNKNOWN),)
        return tuple(track.pieces(start, end, self.kinds, self.losses, self.last))

    def inside(self, vcpu: Vcpu, start: float, end: float) -> Sequence[Stretch]:
        """``stretches`` but for those in user space, of a vCPU that has events."""
        return self._tracks[vcpu].pieces(start, end, self.kinds, self.losses, self.last, INSIDE)

    def track_of(self, vcpu: Vcpu) -> Track:
        """The events of a vCPU that has some."""
        return self._tracks[vcpu]

    def gaps(self, vcpu: Vcpu, start: float, end: float) -> tuple[Track, int, int] | None:
        """The events after which ``Track.codes`` tell where ``vcpu`` was from ``start`` to ``end``."""
        track = self._tracks[vcpu]
        span = track.span(start, end, self.kinds, self.losses)
        return None if span is None else (track, span[0], span[1])

    @property
    def lost(self) -> int:
        """How many times the recorder dropped events."""
        return len(self.losses.all)

    def intervals(self, vcpu: Vcpu) -> tuple[tuple[float, float], ...]:
        """The stretches of ``vcpu`` in the guest or in KVM_RUN, in order: ``stretches`` tells the rest too."""
        inside = (Where.GUEST, Where.RUN)
        return tuple((each.start, each.end) for each in self.stretches(vcpu) if each.where in inside)

    def expecting(self, vcpus: int) -> RunState:
        """The same of a VM that has so many vCPUs: those of which there is no event are ``missing``."""
        numbers = {vcpu.index for vcpu in self._tracks}
        unnumbered = sum(vcpu.index is None for vcpu in self._tracks)
        possible = sorted((set(range(vcpus)) | set(self.missing)) - numbers)
        self.missing = tuple(possible[unnumbered:])
        return self

    def known(self, vcpu: Vcpu) -> tuple[float, float]:
        """From when until when anything is known of ``vcpu``."""
        track = self._tracks[vcpu]
        first = track.times[0] if track.times else self.last
        return min(first, track.known_from), self.last

    def returns(self, vcpu: Vcpu, start: float, end: float) -> tuple[Return, ...]:
        """The returns of ``vcpu`` to user space that are stamped in ``[start, end]``, in order."""
        track = self._tracks.get(vcpu)
        return () if track is None else tuple(track.returns(start, end))

    def guest_returns(
        self, vcpu: Vcpu, start: float, end: float, at: tuple[int, int] | None = None
    ) -> Iterator[Return]:
        """Those of them that show that guest code ran since the one before; ``at``: what ``guest_caused`` said."""
        track = self._tracks.get(vcpu)
        return iter(()) if track is None else track.guest_returns(start, end, at)

    def guest_caused(self, vcpu: Vcpu, start: float, end: float) -> tuple[int, int] | None:
        """Where the events in between are, if ``guest_exits`` or ``guest_returns`` may say something."""
        track = self._tracks.get(vcpu)
        return None if track is None else track.guest_caused(start, end)

    def may_die(self, vcpu: Vcpu, start: float, end: float) -> bool:
        """Whether ``fatal_returns`` or ``last_returns`` have one between the two times. Mostly O(log n)."""
        track = self._tracks.get(vcpu)
        return track is not None and track.may_die(start, end)

    def fatal_returns(self, vcpu: Vcpu, start: float, end: float) -> Iterator[Return]:
        """Those of them after which the vCPU cannot go on. O(log n + result)."""
        track = self._tracks.get(vcpu)
        return iter(()) if track is None else track.returns(start, end, fatal=True)

    def last_returns(self, vcpu: Vcpu, start: float, end: float) -> Iterator[Return]:
        """Those without a reason after which the vCPU was in user space until ``end``, the last one first."""
        track = self._tracks.get(vcpu)
        return iter(()) if track is None else track.last_returns(start, end, self.kinds, self.losses, self.last)

    def guest_exits(self, vcpu: Vcpu, start: float, end: float) -> Sequence[float]:
        """Stamps in ``[start, end]`` of exits from guest mode that only guest code can cause, in order."""
        track = self._tracks.get(vcpu)
        return () if track is None else track.guest_exits(start, end)

    def last_return_before(self, thread: int, time: float) -> float | None:
        """When ``thread``, if it is a vCPU's, was last seen to come to user space before ``time``, and stay there.

        Strictly before: what it did at ``time`` itself may be seen by the end of it.
        """
        track = self._by_thread.get(thread)
        return None if track is None else track.last_outside(time)

    def ran_between(self, thread: int, start: float, end: float) -> bool:
        """Whether ``thread`` runs a vCPU and came back to user space from it between the stamps, by an exit or fault.

        A KVM_RUN that a signal or ``immediate_exit`` ended does not count. O(log n + events in between).
        """
        return any(
            each.name not in ("EINTR", "EAGAIN") and start < each.time < end
            for vcpu in self._tracks
            if vcpu.thread == thread
            for each in self.returns(vcpu, start, end)
        )

    def shifted(self, offset: float) -> RunState:
        """The same with ``offset`` seconds added to every time: from another clock to this one. O(n)."""
        if not offset:
            return self
        return RunState.of_tracks(
            {
                vcpu: Track(
                    array("d", [time + offset for time in track.times]),
                    track.words,
                    known_from=track.known_from + offset,
                    calls=track.calls,
                )
                for vcpu, track in self._tracks.items()
            },
            first=self.first + offset,
            last=self.last + offset,
            source=self.source,
            kinds=self.kinds,
            losses=[Loss(each.cpu, each.after + offset, each.before + offset, each.text) for each in self.losses.all],
            resolution=self.resolution,
            irqchip=self.irqchip,
            missing=self.missing,
        )

    def __str__(self) -> str:
        vcpus, events = len(self._tracks), self.events
        count = len(self.losses.all)
        lost = f", events were lost {count} time{'s' * (count != 1)}" if count else ""
        counts = f"{vcpus} vCPU{'s' * (vcpus != 1)}, {events} event{'s' * (events != 1)}"
        return f"{counts}, from {self.source or 'elsewhere'}{lost}"
