"""Where one vCPU was in many windows at once: what ``verdict`` works out for one, over columns (NumPy).

Each question is put to all windows: where its moments lie among the vCPU's events, and how many events of a kind there
are in between, by sums that are made once. Windows have a moment for which the memory was missing for certain, that is
longer than the stamps are off; see ``verdict`` for what is asked and why.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..traces import returns as of_track
from ..traces.event_words import (
    ELSEWHERE,
    ENTRY,
    EXIT,
    FATAL,
    FORGOTTEN,
    GUEST_CAUSED,
    KIND,
    NUMBER_MASK,
    NUMBER_SHIFT,
    RUN_BEGIN,
    RUN_END,
    USER_EXIT,
)
from ..traces.evidence import Irqchip, Where
from ..traces.whereabouts import CODE, NOWHERE, PLACES
from .judgement import RANKS
from .rules import RULES

if TYPE_CHECKING:
    from ..traces.run_state import RunState
    from ..traces.timeline import Vcpu
    from ..traces.whereabouts import Kinds, Track

__all__ = ["GUEST_EXIT", "IN_GUEST", "OUTSIDE", "Answer", "VcpuColumns", "Windows"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]
IN_GUEST, GUEST_EXIT = 1, 2
"""What shows that a hole was open: see the rules of these names."""
OUTSIDE = len(RULES)
"""No doubt at all: the vCPU was in user space."""
(GUEST,), (RUN,), (KVM,), (UNKNOWN,), (USER,) = (
    CODE[each] for each in (Where.GUEST, Where.RUN, Where.KVM, Where.UNKNOWN, Where.USER)
)
_BESIDE = 16
"""Events of a vCPU that are looked at before the first moment that is asked for, and after the last; at least 2."""
_PORTION = 4096
"""Of how many events at once the last return before them is looked for, backwards."""


class Windows(NamedTuple):
    """Windows as columns: see ``verdict.Window``. ``thread`` is 0 where none is known.

    ``off``: by how much each stamp may be off, the same for all; ``took``: the stamp of what took the memory away.
    """

    start: Floats
    core_start: Floats
    core_end: Floats
    end: Floats
    took: Floats
    thread: Ints
    off: float


class Answer(NamedTuple):
    """What is known of one vCPU in each window.

    ``proofs``: IN_GUEST, GUEST_EXIT (with the time in ``exits``) or 0, as far as ``is_open_known``; ``ranks``: the
    place of the rule that says why it is not known to have been outside, or OUTSIDE, as far as ``is_doubt_known``;
    ``deaths``: when it left KVM_RUN and did not come back, or infinity, as far as ``is_death_known``.
    """

    is_open_known: Bools
    proofs: Codes
    exits: Floats
    is_doubt_known: Bools
    ranks: Codes
    is_death_known: Bools
    deaths: Floats


class VcpuColumns:
    """The events of one vCPU as columns, of those only that are about ``[first, last]``: some 60 bytes an event.

    What follows from an end of the columns is not known, as at an end of what was recorded: so windows must lie within.
    """

    def __init__(self, run_state: RunState, vcpu: Vcpu, first: float, last: float) -> None:
        track = run_state.track_of(vcpu)
        low = max(bisect_left(track.times, first) - _BESIDE, 0)
        high = bisect_right(track.times, last) + _BESIDE
        self._thread, self._kinds, self._last = vcpu.thread, run_state.kinds, run_state.last
        self._is_irqchip_elsewhere = run_state.irqchip is Irqchip.USER
        self._times = times = np.frombuffer(track.times, np.float64)[low:high]
        self._words = words = np.frombuffer(track.words, np.uint32)[low:high]
        codes = _codes_of(track, run_state.kinds, times, words, low)
        self._inside = _counted((codes != USER) & (codes != NOWHERE))
        self._run, self._kvm, self._unknown = (_counted(codes == each) for each in (RUN, KVM, UNKNOWN))
        self._not_run = _counted((codes != RUN) & (codes != NOWHERE))
        guest = np.flatnonzero(codes == GUEST)
        self._entered, self._left = times[guest], times[guest + 1]
        kinds = words & KIND
        self._fatal = _counted(((kinds == USER_EXIT) | (kinds == RUN_END)) & (words & FATAL > 0))
        returned = (kinds == USER_EXIT) | (kinds == RUN_END)
        places = np.where(returned, np.arange(len(words)), -1)
        self._last_return = np.concatenate((np.array([-1]), np.maximum.accumulate(places)))
        self._exits = times[words & (KIND | GUEST_CAUSED) == EXIT | GUEST_CAUSED]
        before = _number_before(np.frombuffer(track.words, np.uint32)[:low])
        self._ran = times[_showing_that_guest_ran(words, np.flatnonzero(returned | (kinds == FORGOTTEN)), before)]

    def begun(self, windows: Windows) -> Windows:
        """The same, but where this vCPU's thread made the change: it began after it last came back to user space."""
        rows = np.flatnonzero((windows.thread == self._thread) & (windows.thread != 0))
        if not len(rows):
            return windows
        i = np.searchsorted(self._times, windows.took[rows]) - 1
        rows, i = rows[i >= 0], i[i >= 0]
        outside = np.isin(self._words[i] & KIND, (USER_EXIT, RUN_END, ELSEWHERE))
        start = windows.start.copy()
        start[rows[outside]] = np.maximum(start[rows[outside]], self._times[i[outside]])
        return windows._replace(start=start)

    def answer(self, windows: Windows) -> Answer:
        """What is known of the vCPU in each window."""
        return Answer(*self._open(windows), *self._doubts(windows), *self._deaths(windows))

    def _at(self, moments: Floats) -> Ints:
        """How many events are before each."""
        return np.searchsorted(self._times, moments)

    def _by(self, moments: Floats) -> Ints:
        """How many are not after it."""
        return np.searchsorted(self._times, moments, "right")

    def _open(self, windows: Windows) -> tuple[Bools, Codes, Floats]:
        """``verdict._open``."""
        first, last, off = windows.core_start, windows.core_end, windows.off
        proofs = np.zeros(len(first), np.uint8)
        exits = _first_after(self._exits, first + off)
        proofs[exits <= last - off] = GUEST_EXIT
        is_known = (proofs == GUEST_EXIT) | (_first_after(self._ran, first + off) > last - off)
        if self._kinds.entries and self._kinds.exits:
            proofs[self._in_guest(first, last, off)] = IN_GUEST
            is_known |= proofs == IN_GUEST
            is_known &= (self._at(first) > 0) & (self._by(last) < len(self._times))
        return is_known, proofs, exits

    def _in_guest(self, first: Floats, last: Floats, off: float) -> Bools:
        """Whether a stay in the guest holds either end of the core, or meets what is between them."""
        entered, left = self._entered, self._left
        if not len(entered):
            return np.zeros(len(first), np.bool_)
        found = np.zeros(len(first), np.bool_)
        for moment in (first, last):
            i = np.searchsorted(entered, moment, "right") - 1
            found |= (i >= 0) & (entered[i] + off <= moment) & (moment <= left[i] - off)
        i = np.searchsorted(left, first + off, "right")
        there = i < len(left)
        found |= there & (entered[np.where(there, i, 0)] < last - off)
        return found

    def _doubts(self, windows: Windows) -> tuple[Bools, Codes]:
        """``verdict._doubts``, as far as ``_worst_of_gaps`` tells."""
        off = windows.off
        own = (windows.thread == self._thread) & (windows.thread != 0)
        start = windows.start - np.where(own, -off, off)
        end = windows.end + np.where(own, -off, off)
        i = self._at(start) - 1
        j = np.maximum(self._by(end), np.maximum(i, 0))
        is_known = (i >= 0) & (j < len(self._times))
        i, j = np.where(is_known, i, 0), np.where(is_known, j, 0)
        i = np.minimum(np.maximum(i, self._by(start) - 1), j)
        j = np.maximum(np.minimum(j, self._at(end)), i)
        inside = self._inside
        is_outside = inside[i] == inside[j]
        is_known &= is_outside | (self._unknown[i] == self._unknown[j])
        begins, ends = windows.core_start + off, windows.core_end - off
        begun = np.clip(self._by(begins), i, j + 1) - 1
        low, high = np.maximum(i, begun), np.clip(self._at(ends), i, j)
        in_core = (end > begins) & (start < ends) & (low < high) & (inside[low] < inside[high])
        runs, serves = (in_core & (each[low] < each[high]) for each in (self._run, self._kvm))
        low = np.maximum(i, np.clip(self._by(windows.start + off), i, j + 1) - 1)
        high = np.minimum(high, begun)
        before = (start < ends) & (low < high) & (inside[low] < inside[high])
        ranks = np.full(len(start), RANKS["edge"], np.uint8)
        ranks[before] = RANKS["begin-unknown"]
        ranks[serves] = RANKS["served"]
        ranks[runs] = RANKS["kvm-run"]
        if self._is_irqchip_elsewhere:
            whole = (start <= windows.start - off) & (self._not_run[i] == self._not_run[j])
            ranks[runs & whole] = RANKS["run-no-irqchip"]
        ranks[is_outside] = OUTSIDE
        return is_known, ranks

    def _deaths(self, windows: Windows) -> tuple[Bools, Floats]:
        """``verdict._deaths``, where no return was fatal: when it came back to user space for no reason, and stayed."""
        until = np.minimum(windows.core_end, self._last)
        low = self._by(windows.start)
        high = np.maximum(low, self._at(until))
        at = self._last_return[high]
        last, stays = at, (at >= low) & ~self._leaves(at, high, until)
        before = self._last_return[np.maximum(last, 0)]
        no_more = (before < low) | self._leaves(before, high, until)
        without_reason = self._words[last] & (FATAL | NUMBER_MASK << NUMBER_SHIFT) == 0
        is_outside = self._inside[np.minimum(last, high)] == self._inside[np.minimum(high, len(self._times) - 1)]
        is_dead = stays & without_reason & is_outside
        is_known = ~stays | (without_reason & ~is_outside & (high < len(self._times)))
        is_known |= no_more & (~without_reason | (high < len(self._times)))
        is_known &= self._fatal[low] == self._fatal[high]
        own: Bools = (windows.thread == self._thread) & (windows.thread != 0)
        return is_known | own, np.where(is_dead & ~own, self._times[last], np.inf)

    def _leaves(self, at: Ints, high: Ints, until: Floats) -> Bools:
        """``Track._leaves``, if what follows is before ``high``."""
        after = np.minimum(at + 1, len(self._times) - 1)
        found: Bools = (at + 1 < high) & (self._times[at] < self._times[after]) & (self._times[after] < until)
        return found & np.isin(self._words[after] & KIND, (ENTRY, RUN_BEGIN))


def _counted(mask: Bools) -> Ints:
    """How many are set before each place, and in all."""
    counts = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(mask, out=counts[1:])
    return counts


def _first_after(moments: Floats, at: Floats) -> Floats:
    """The first of ``moments`` after each of ``at``, or infinity."""
    found: Floats = np.append(moments, np.inf)[np.searchsorted(moments, at, "right")]
    return found


def _codes_of(track: Track, kinds: Kinds, times: Floats, words: npt.NDArray[np.uint32], low: int) -> Codes:
    """Those of ``Track.codes`` that belong to ``words``, which are the track's from ``low`` on."""
    if track.codes or len(words) < 2:
        return np.frombuffer(track.codes, np.uint8)[low : low + max(len(words) - 1, 0)]
    known, which = np.unique(words, return_inverse=True)
    pairs, place = np.unique(which[:-1] * len(known) + which[1:], return_inverse=True)
    events = known.tolist()
    found = (track.between(events[each // len(known)], events[each % len(known)], kinds) for each in pairs.tolist())
    codes = np.array([PLACES.index(each) for each in found], np.uint8)[place]
    codes[times[1:] == times[:-1]] = NOWHERE
    return codes


def _number_before(words: npt.NDArray[np.uint32]) -> int:
    """The exit's number in the last of ``words`` that is a return to user space; 0 if there is none."""
    for end in range(len(words), 0, -_PORTION):
        part = words[max(end - _PORTION, 0) : end]
        returns = np.flatnonzero(np.isin(part & KIND, (USER_EXIT, RUN_END, FORGOTTEN)))
        if len(returns):
            return int(part[returns[-1]]) >> NUMBER_SHIFT & NUMBER_MASK
    return 0


def _showing_that_guest_ran(words: npt.NDArray[np.uint32], returns: Ints, number: int) -> Ints:
    """Those of ``returns`` that show that guest code ran since the one before (``Track.guest_returns``).

    ``number``: that of the last return before ``words``.
    """
    events = words[returns]
    numbers = (events >> NUMBER_SHIFT & NUMBER_MASK).astype(np.int64)
    before = np.concatenate((np.array([number]), numbers))[: len(numbers)]
    pairs, place = np.unique(before << 8 | numbers, return_inverse=True)
    goes_on = [of_track.continues(pair >> 8 << NUMBER_SHIFT, (pair & 0xFF) << NUMBER_SHIFT) for pair in pairs.tolist()]
    return returns[(events & GUEST_CAUSED > 0) & ~np.array(goes_on, np.bool_)[place]]
