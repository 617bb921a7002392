"""What a vCPU's returns to user space and its exits from the guest show, by their kinds."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .event_words import (
    ENTRY,
    ERRNOS,
    EXIT,
    FATAL,
    FORGOTTEN,
    GUEST_CAUSED,
    KIND,
    NAMES,
    NUMBER_MASK,
    NUMBER_SHIFT,
    OTHER_ERRNO,
    RUN_BEGIN,
    RUN_END,
    USER_EXIT,
)
from .events import Events
from .evidence import may_continue

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Return", "Returns", "continues", "new_tuple"]

new_tuple = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes."""
NOT_CAUSED = bytes([bits for bits in range(256) if not bits & GUEST_CAUSED])
CHOSEN = tuple(
    bytes(map(wanted, range(256)))
    for wanted in (
        lambda bits: bits & KIND in (USER_EXIT, RUN_END, FORGOTTEN),
        lambda bits: bits & KIND in (USER_EXIT, RUN_END, FORGOTTEN) and bits & FATAL > 0,
        lambda bits: bits & (KIND | GUEST_CAUSED) == EXIT | GUEST_CAUSED,
    )
)
"""By the low byte of an event: whether it is a return, a fatal one, an exit by guest code."""


class Return(NamedTuple):
    """A vCPU came back to user space at ``time``: with which exit or error ('' if the recording does not tell).

    ``ran``: guest code ran since the last return, by the kind of exit: only guest code causes it, and it cannot be the
    rest of what the exit before it began. ``began``: when its KVM_RUN began, or None.
    """

    time: float
    name: str
    ran: bool
    fatal: bool
    began: float | None


@dataclass(slots=True)
class Returns(Events):
    """The events of one vCPU, in order of time, and where among them its returns and exits are."""

    _places: tuple[array[int], ...] | None = None
    _bits: bytes = b""
    _looked: tuple[float, float, int, int] = (math.inf, -math.inf, 0, 0)

    def _find(self) -> tuple[array[int], ...]:
        """Where in the arrays the returns, the fatal ones, and the exits by guest code stand. O(n) once."""
        if self._places is None:
            bits = self._bits = bytes(map(operator.and_, self.words, itertools.repeat(0xFF)))
            all_places = range(len(bits))
            self._places = tuple(array("I", itertools.compress(all_places, bits.translate(each))) for each in CHOSEN)
        return self._places

    def guest_caused(self, start: float, end: float) -> tuple[int, int] | None:
        """Where the events in ``[start, end]`` are, if one is an exit that guest code caused. O(log n + events)."""
        self._find()
        low = bisect_left(self.times, start)
        high = bisect_right(self.times, end, low)
        return (low, high) if low < high and self._bits[low:high].translate(None, NOT_CAUSED) else None

    def may_die(self, start: float, end: float) -> bool:
        """Whether ``last_returns`` or fatal ``returns`` have one between the two, neither included."""
        fatal = self._find()[1]
        times, words = self.times, self.words
        first, last, i, j = self._looked
        if first <= start and end <= last:  # where ``span`` just looked
            low = bisect_right(times, start, i, j)
            high = bisect_left(times, end, low, j)
        else:
            low = bisect_right(times, start)
            high = bisect_left(times, end, low)
        if fatal and bisect_left(fatal, low) < bisect_left(fatal, high):
            return True
        for i in range(high - 1, low - 1, -1):
            event = words[i]
            if event & KIND in (USER_EXIT, RUN_END):
                if i + 1 < high and self._leaves(i, end):
                    return False
                if not event & (FATAL | NUMBER_MASK << NUMBER_SHIFT):
                    return True
        return False

    def returns(self, start: float, end: float, *, fatal: bool = False) -> Iterator[Return]:
        """The returns to user space stamped in ``[start, end]``, or the fatal among them. O(log n + result)."""
        places = self._find()[fatal]
        if not places:
            return
        low, high = bisect_left(self.times, start), bisect_right(self.times, end)
        for k in range(bisect_left(places, low), bisect_left(places, high)):
            if self.words[places[k]] & KIND != FORGOTTEN:
                yield self._return(places[k])

    def _leaves(self, i: int, end: float) -> bool:
        """Whether the event after ``i`` shows, before ``end``, that the vCPU does not stay in user space. O(1)."""
        times, n = self.times, i + 1
        return n < len(times) and times[i] < times[n] < end and self.words[n] & KIND in (ENTRY, RUN_BEGIN)

    def guest_returns(self, start: float, end: float, at: tuple[int, int] | None = None) -> Iterator[Return]:
        """The returns in ``[start, end]`` that show that guest code ran; ``at`` is where those events are, if known.

        O(log n + returns in between).
        """
        words, caused = self.words, (USER_EXIT | GUEST_CAUSED, RUN_END | GUEST_CAUSED)
        low, high = at or (bisect_left(self.times, start), bisect_right(self.times, end))
        for low in range(low, high):  # noqa: B020 (the first of them)
            if words[low] & (KIND | GUEST_CAUSED) in caused:
                break
        else:
            return
        places = self._find()[0]
        first = bisect_left(places, low)
        before = words[places[first - 1]] if first else 0
        for i in places[first : bisect_left(places, high, first)]:
            event = words[i]
            if event & GUEST_CAUSED and not continues(before, event):
                began = self.times[i - 1] if i and words[i - 1] & KIND == RUN_BEGIN else None
                name = NAMES.get(event >> NUMBER_SHIFT & NUMBER_MASK, "")
                yield new_tuple(Return, (self.times[i], name, True, bool(event & FATAL), began))
            before = event

    def _return(self, i: int) -> Return:
        """The return that stands at ``i``. O(log n)."""
        places, words = self._find()[0], self.words
        k = bisect_left(places, i)
        before, event = words[places[k - 1]] if k else 0, words[i]
        ran = bool(event & GUEST_CAUSED) and not continues(before, event)
        began = self.times[i - 1] if i and words[i - 1] & KIND == RUN_BEGIN else None
        name = NAMES.get(event >> NUMBER_SHIFT & NUMBER_MASK, "")
        return Return(self.times[i], name, ran, bool(event & FATAL), began)

    def guest_exits(self, start: float, end: float) -> Sequence[float]:
        """Stamps in ``[start, end]`` of kvm_exit events that only guest code can cause. O(log n + result)."""
        places = self._find()[2]
        if not places:
            return ()
        low, high = bisect_left(self.times, start), bisect_right(self.times, end)
        return [self.times[i] for i in places[bisect_left(places, low) : bisect_left(places, high)]]


def _number(event: int) -> int | None:
    """The KVM_EXIT_* number of a return, or None if it is not known or was an error."""
    code = event >> NUMBER_SHIFT & NUMBER_MASK
    return code - 1 if 0 < code < OTHER_ERRNO else None


@functools.lru_cache(maxsize=4096)
def continues(before: int, event: int) -> bool:
    """Whether a return may be the rest of the one before: KVM finishes an instruction before it says EINTR."""
    if before >> NUMBER_SHIFT & NUMBER_MASK == ERRNOS["EINTR"]:
        return False
    return may_continue(_number(before), _number(event))
