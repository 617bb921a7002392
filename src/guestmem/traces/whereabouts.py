"""Where a vCPU is between two of its events, and what its exits prove.

The events of one vCPU are kept as two arrays, times and words. What is known of the time between two of them follows
from the two, from the kinds of event that were recorded at all, and from what was lost meanwhile; so nothing is worked
out before somebody asks, and then only for the time that was asked for.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .event_words import (
    CPU_SHIFT,
    ELSEWHERE,
    ENTRY,
    EXIT,
    FATAL,
    FORGOTTEN,
    IMMEDIATE,
    KIND,
    LOOKS,
    NUMBER_MASK,
    NUMBER_SHIFT,
    RUN_BEGIN,
    RUN_END,
    USER_EXIT,
)
from .evidence import Stretch, Where
from .returns import Returns, new_tuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .losses import Losses
    from .returns import Return

__all__ = ["CODE", "INSIDE", "NOWHERE", "NO_TIME", "PLACES", "Kinds", "Track", "joined"]

PLACES = tuple(Where)
NOWHERE = len(PLACES)
CODE = {where: bytes([place]) for place, where in enumerate(PLACES)}
NO_TIME = bytes([NOWHERE])


def _stays(*places: Where) -> re.Pattern[bytes]:
    """Matches stays in these places, of several events if they follow one another; one in the guest is one event's."""
    return re.compile(
        b"|".join(
            CODE[each] if each is Where.GUEST else b"%b[%b%b]*" % (CODE[each], CODE[each], NO_TIME) for each in places
        ),
        re.DOTALL,
    )


INSIDE, RUNS = _stays(Where.GUEST, Where.RUN, Where.KVM, Where.UNKNOWN), _stays(*Where)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which kinds of event a recording has at all: one that was not recorded proves nothing by its absence."""

    entries: bool = False
    exits: bool = False
    user_exits: bool = False


@dataclass(slots=True)
class Track(Returns):
    """The events of one vCPU, in order of time; see ``word``.

    ``known_from``: the vCPU was in user space from then until its first event (it was made then, or the recorder had
    just been told); infinite if nothing is known before its first event. ``calls``: whether its KVM_RUN calls were
    recorded, begin and end. ``codes``: where the vCPU is after each event but the last, as a place in PLACES, or
    NOWHERE if the next has the same stamp; made when somebody asks.
    """

    known_from: float = math.inf
    calls: bool = False
    codes: bytes = b""

    def stretches(self, start: float, end: float, kinds: Kinds, losses: Losses, last: float) -> Iterator[Stretch]:
        """Where the vCPU was, piece by piece, from the piece that holds ``start`` to the one that holds ``end``.

        ``last``: the recording knows until then. O(log n + pieces).
        """
        times, words = self.times, self.words
        i = bisect_left(times, start) - 1
        if i < 0:
            first = times[0] if times else last
            if self.known_from < first:
                if start <= self.known_from:
                    yield Stretch(-math.inf, self.known_from, Where.UNKNOWN)
                yield from _with_losses(Stretch(self.known_from, first, Where.USER), None, losses)
            else:
                yield Stretch(-math.inf, first, Where.UNKNOWN)
            i = 0
        n = len(times)
        while i < n and times[i] <= end:
            if i + 1 < n:
                piece = Stretch(times[i], times[i + 1], self.between(words[i], words[i + 1], kinds))
            else:
                piece = Stretch(times[i], max(last, times[i]), self._after_last(words[i], kinds))
            yield from _with_losses(piece, _cpu(words[i]), losses)
            i += 1
        if end > last and (not n or times[-1] <= end):
            yield Stretch(max(last, times[-1] if n else last), math.inf, Where.UNKNOWN)

    def between(self, before: int, after: int, kinds: Kinds) -> Where:
        """Where the vCPU is between an event and the next one."""
        kind, following = before & KIND, after & KIND
        if kind == FORGOTTEN or following == FORGOTTEN:
            return Where.UNKNOWN
        where = self._after(before, kinds)
        if where is Where.GUEST:
            same_cpu = before >> CPU_SHIFT == after >> CPU_SHIFT
            return Where.GUEST if following == EXIT and same_cpu else Where.UNKNOWN
        if following == EXIT and kind != ENTRY and kinds.entries:
            return Where.UNKNOWN  # an exit without its entry
        if following == USER_EXIT and where is Where.USER and kind != EXIT:
            return Where.KVM if kinds.entries else Where.UNKNOWN  # KVM_RUN began, and returned without an entry
        if following == RUN_END and kind in (RUN_END, ELSEWHERE):
            return Where.UNKNOWN  # a return without its call
        if following == RUN_BEGIN and kind == RUN_BEGIN:
            return Where.UNKNOWN
        return where

    def _after(self, event: int, kinds: Kinds) -> Where:
        kind = event & KIND
        if kind == ENTRY:
            if kinds.exits:
                return Where.KVM if event & IMMEDIATE else Where.GUEST
            return Where.RUN if kinds.user_exits or self.calls else Where.UNKNOWN
        if kind == EXIT:
            if not kinds.entries:
                return Where.RUN if self.calls else Where.UNKNOWN
            return Where.KVM if event & LOOKS else Where.USER
        if kind == RUN_BEGIN:
            return Where.KVM if kinds.entries and kinds.exits else Where.RUN
        if kind == USER_EXIT:
            return Where.USER if kinds.entries or self.calls else Where.UNKNOWN
        return Where.USER if self.calls or kinds.entries else Where.UNKNOWN

    def _after_last(self, event: int, kinds: Kinds) -> Where:
        if event & KIND == FORGOTTEN:
            return Where.UNKNOWN
        where = self._after(event, kinds)
        return Where.RUN if where is Where.GUEST else where  # no exit was seen: in the guest, or no longer

    def pieces(
        self,
        start: float,
        end: float,
        kinds: Kinds,
        losses: Losses,
        last: float,
        which: re.Pattern[bytes] | None = None,
    ) -> list[Stretch]:
        """``stretches``, neighbours in one place as one; ``which`` may leave some out: INSIDE or NOT_KNOWN.

        O(log n + pieces) once the places between all events are known, of which each is a byte.
        """
        span = self.span(start, end, kinds, losses)
        if span is None:
            return joined(self.stretches(start, end, kinds, losses, last))
        times, codes = self.times, self.codes
        runs = [run.span() for run in (which or RUNS).finditer(codes, *span)]
        return [new_tuple(Stretch, (times[first], times[after], PLACES[codes[first]])) for first, after in runs]

    def span(self, start: float, end: float, kinds: Kinds, losses: Losses) -> tuple[int, int] | None:
        """The events ``[i, j)`` after which ``codes`` tell where the vCPU was from ``start`` to ``end``. O(log n).

        None where they do not tell all: before the first event, after the last, and where something was lost.
        """
        times = self.times
        if not self.codes:
            self.codes = self._all_codes(kinds)
        i = bisect_left(times, start) - 1
        j = bisect_right(times, end, max(i, 0))
        if i < 0 or j >= len(times) or (losses and losses.first_in(times[i], times[j]) is not None):
            return None
        self._looked = start, end, max(i, 0), j
        return i, j

    def _all_codes(self, kinds: Kinds) -> bytes:
        """Where the vCPU is after each event, as a place in PLACES; NOWHERE if the next one has the same stamp."""
        words = self.words

        class Between(dict[tuple[int, int], int]):
            def __missing__(table, pair: tuple[int, int]) -> int:  # noqa: N805 (self is the track)
                code = table[pair] = PLACES.index(self.between(*pair, kinds))
                return code

        following = memoryview(words)[1:]
        codes = bytearray(map(Between().__getitem__, zip(words, following, strict=False)))
        same = bytes(map(operator.eq, self.times, itertools.islice(self.times, 1, None)))
        if True in same:
            for i in itertools.compress(range(len(same)), same):
                codes[i] = NOWHERE
        return bytes(codes)

    def last_returns(self, start: float, end: float, kinds: Kinds, losses: Losses, last: float) -> Iterator[Return]:
        """Those without a reason after which the vCPU was in user space until ``end``, the last one first."""
        places = self._find()[0]
        low, high = bisect_left(self.times, start), bisect_right(self.times, end)
        for k in range(bisect_left(places, high) - 1, bisect_left(places, low) - 1, -1):
            i = places[k]
            if self.words[i] & KIND == FORGOTTEN:
                continue
            if self._leaves(i, end):
                return
            if self.words[i] & (FATAL | NUMBER_MASK << NUMBER_SHIFT):
                continue
            at = self.times[i]
            for piece in self.stretches(at, end, kinds, losses, last):
                if piece.where is not Where.USER and at <= piece.start < end and piece.end > piece.start:
                    return
            yield self._return(i)

    def last_outside(self, time: float) -> float | None:
        """The last event before ``time``, if the vCPU was in user space after it, or None. O(log n)."""
        i = bisect_left(self.times, time) - 1
        if i >= 0 and self.words[i] & KIND in (USER_EXIT, RUN_END, ELSEWHERE):
            return self.times[i]
        return None


def joined(pieces: Iterable[Stretch]) -> list[Stretch]:
    """Pieces in order, without empty ones; neighbours in one place are one, but for stays in the guest."""
    result: list[Stretch] = []
    for each in pieces:
        if each.end <= each.start:
            continue
        if result and result[-1].where is each.where is not Where.GUEST and result[-1].end == each.start:
            result[-1] = Stretch(result[-1].start, each.end, each.where)
        else:
            result.append(each)
    return result


def _cpu(event: int) -> int | None:
    return (event >> CPU_SHIFT) - 1 if event >> CPU_SHIFT else None


def _with_losses(piece: Stretch, cpu: int | None, losses: Losses) -> Iterator[Stretch]:
    """``piece``, with what losses leave of it.

    In the guest only what is lost on its own CPU matters, and only meanwhile: it is left on the CPU where it was
    entered. Outside, an entry may be lost on any CPU, and the guest not left before the vCPU's next event.
    """
    start, end, where = piece
    if not losses or where is Where.UNKNOWN:
        yield piece
        return
    if where is not Where.GUEST:
        lost = losses.first_in(start, end)
        if lost is None:
            yield piece
        else:
            if lost[0] > start:
                yield Stretch(start, lost[0], where)
            yield Stretch(max(start, lost[0]), end, Where.UNKNOWN)
        return
    while start < end:
        lost = losses.first_in(start, end, cpu)
        if lost is None:
            yield Stretch(start, end, where)
            return
        if lost[0] > start:
            yield Stretch(start, lost[0], where)
        yield Stretch(max(start, lost[0]), min(end, lost[1]), Where.UNKNOWN)
        start = lost[1]
