"""Whether guest code ran on a vCPU while memory was missing: a proof by the rules of ``rules``, or UNKNOWN.

A trace stamps a call when it starts or when it has returned; KVM acts somewhere in between. So each window has a core,
in which the memory was missing for certain, and an outer bound, outside of which it was there for certain. OPEN is
shown in the core, CLOSED over the bound. Every stamp is taken to be off by its last place.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from ..traces.columns import CREATE, DELETE, KIND, NO_THREAD
from ..traces.evidence import Irqchip, Where
from ..traces.whereabouts import CODE, NO_TIME
from .judgement import DIED, TEXTS, Finding, Judgement, Worst, closed, death, guest_exit, in_guest, opened
from .rules import RULES, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..traces.columns import Changes
    from ..traces.timeline import RunState, Vcpu
    from ..traces.whereabouts import Track
    from .missing import Returned

__all__ = ["Window", "judge", "pairs_of", "window_of"]

SERVED_WITHIN = 20e-6
"""Seconds. What is taken for granted of KVM_RUN, whose entries and exits nobody recorded: KVM serves an exit, or comes
back to user space from it, within that. It is used where a call began before the memory was missing, and returned after
that with an exit of the guest's."""


class Window(NamedTuple):
    """When memory was missing, in seconds.

    It was missing for certain from ``core_start`` to ``core_end`` (NaN: no such moment is known; equal: at that
    moment), and was there for certain before ``start`` and after ``end``. ``off``: by how much each stamp may be off.
    """

    start: float
    core_start: float
    core_end: float
    end: float
    off: float
    thread: int | None

    @property
    def has_core(self) -> bool:
        """Whether there is a moment at which the memory was missing for certain."""
        return self.core_start <= self.core_end


_Doubt = tuple[str, str]
"""A rule's name, and what it says here."""
GUEST = CODE[Where.GUEST]
(IN_GUEST,) = GUEST
RUN, KVM, UNKNOWN = CODE[Where.RUN], CODE[Where.KVM], CODE[Where.UNKNOWN]
OUTSIDE, IN_RUN = CODE[Where.USER] + NO_TIME, RUN + NO_TIME
NO_BEGIN, NO_END = "when the delete began is not known", "when the create had returned is not known"


def window_of(changes: Changes, indices: Sequence[int], removed: int, restored: int, off: float) -> Window:
    """The window between two changes of the transaction ``indices``: what took memory away, what gave it back.

    The calls of a transaction follow one another: one has returned when the next one begins.
    """
    began, ended = changes.began, changes.ended
    start, end = began[removed], ended[restored]
    core_start = core_end = math.nan
    if removed != restored:
        core_start, core_end = ended[removed], began[restored]
        if core_start != core_start:  # noqa: PLR0124 (not a number)
            core_start = began[indices[bisect_left(indices, removed) + 1]]
        if core_end != core_end:  # noqa: PLR0124
            core_end = ended[indices[bisect_left(indices, restored) - 1]]
    thread = changes.thread[removed]
    return Window(
        -math.inf if math.isnan(start) else start,
        core_start,
        core_end,
        math.inf if math.isnan(end) else end,
        off,
        thread if thread not in (NO_THREAD, 0) and thread == changes.thread[restored] else None,
    )


def pairs_of(changes: Changes, returned: Sequence[Returned]) -> list[tuple[int, int]]:
    """Pairs of changes between which memory was missing: what took it away, what gave it back.

    All deletes of a transaction come before its creates. So from the first delete of the hole to its last create some
    of the memory was missing all the time, and the two are one window; a move, which does both, has its own.
    """
    if len(returned) == 1:
        return [returned[0][2:4]]
    codes = changes.code
    pairs = sorted({(each[2], each[3]) for each in returned})
    last = 0
    for removed, restored in pairs:
        if codes[removed] & KIND != DELETE or codes[restored] & KIND != CREATE:
            return pairs
        if restored > last:
            last = restored
    return [(pairs[0][0], last)]


def judge(
    changes: Changes,
    indices: Sequence[int],
    returned: Sequence[Returned],
    run_state: RunState | None,
    resolution: float = 1e-6,
) -> Judgement:
    """The verdict over all windows of the transaction ``indices``, and what it rests on.

    ``returned`` is what it took away and gave back (see ``missing``): each pair of changes is a window. ``resolution``:
    the last place of the changes' stamps, in seconds. O(windows · vCPUs · (log events + events in the window)).
    """
    if run_state is None:
        return NO_RUN_STATE
    times = changes.time
    for i in indices:
        if times[i] != times[i]:
            return NO_TIMES
    off = resolution + run_state.resolution
    vcpus = run_state.vcpus
    proofs: dict[Vcpu, Finding] = {}
    bounds: list[Window] = []
    for removed, restored in pairs_of(changes, returned):
        window = window_of(changes, indices, removed, restored, off)
        if window.thread is not None:
            began = run_state.last_return_before(window.thread, times[removed])
            if began is not None and began > window.start:
                window = window._replace(start=began)
        bounds.append(window)
        for vcpu in vcpus:
            proof = None if vcpu in proofs else _open(window, vcpu, run_state)
            if proof is not None:
                proofs[vcpu] = proof
    if proofs:
        return opened(proofs)
    worst = Worst()
    for window in bounds:
        for vcpu in vcpus:
            _doubts(window, vcpu, run_state, worst)
        for index in run_state.missing:
            worst.take("missing-vcpu", f"nothing is recorded of vCPU {index}")
        _deaths(changes, {each[2] for each in returned}, window, run_state, worst)
    if worst.rule:
        return worst.judgement()
    return closed(vcpus) if vcpus else _unknown("no-run-state", "no vCPU is known")


def _unknown(rule: str, text: str) -> Judgement:
    return Judgement(Verdict.UNKNOWN, RULES[rule], (), text)


NO_RUN_STATE, NO_TIMES = _unknown("no-run-state", "no run state"), _unknown("no-times", "no times")


def _open(window: Window, vcpu: Vcpu, run_state: RunState) -> Finding | None:
    """What proves that guest code ran on ``vcpu`` while the memory was missing, or None."""
    start, core_start, core_end, end, off, _ = window
    has_core = core_start <= core_end
    if run_state.kinds.entries and run_state.kinds.exits:
        for low, high in _in_guest(window, vcpu, run_state):
            inner, outer = low + off, high - off
            if (
                (inner <= start and end <= outer)
                or (has_core and (inner <= core_start <= outer or inner <= core_end <= outer))
                or (has_core and max(low, core_start + off) < min(high, core_end - off))
            ):
                return in_guest(vcpu)
    caused = run_state.guest_caused(vcpu, core_start, core_end) if has_core else None
    if caused is None:
        return None
    for time in run_state.guest_exits(vcpu, core_start, core_end):
        if core_start + off < time <= core_end - off:
            return guest_exit(vcpu, time)
    for each in run_state.guest_returns(vcpu, core_start, core_end, caused):
        inside = each.began is not None and each.began > core_start + off
        earliest = core_start + off + (0.0 if inside else SERVED_WITHIN)
        if earliest < each.time <= core_end - off:
            return Finding("guest-return", vcpu, f"{vcpu} left KVM_RUN inside the hole with {each.name}")
    return None


def _in_guest(window: Window, vcpu: Vcpu, run_state: RunState) -> Iterable[tuple[float, float]]:
    """From when until when ``vcpu`` was in guest mode, of its stays that may meet the window."""
    low, high = (window.core_start, window.core_end) if window.has_core else (window.start, window.end)
    gaps = run_state.gaps(vcpu, low, high) if window.off > 0 else None
    if gaps is None:
        pieces = run_state.stretches(vcpu, low, high) or run_state.stretches(vcpu, window.start, window.end)
        return [each[:2] for each in pieces if each.where is Where.GUEST]
    track, i, j = gaps
    if GUEST not in track.codes[i:j]:
        return ()
    times, codes = track.times, track.codes
    return [(times[k], times[k + 1]) for k in range(i, j) if codes[k] == IN_GUEST]


def _doubts(window: Window, vcpu: Vcpu, run_state: RunState, worst: Worst) -> None:
    """What keeps ``vcpu`` from having been outside KVM over all of ``window``."""
    own = vcpu.thread and vcpu.thread == window.thread  # program order holds, whatever the stamps
    off = -window.off if own else window.off
    start, end = window.start - off, window.end + off
    first, last = start, end  # where to look: nothing more is learnt far from the hole
    if math.isinf(start):
        worst.take("begin-unknown", NO_BEGIN, vcpu)
        first = window.core_start if window.has_core else end
    if math.isinf(end):
        worst.take("end-unknown", NO_END, vcpu)
        last = window.core_end if window.has_core else first
    gaps = run_state.gaps(vcpu, first, last)
    rule = "" if gaps is None else _worst_of_gaps(*gaps, start, end, window, run_state.irqchip)
    if gaps is not None and rule is not None:
        if rule:
            worst.take(rule, TEXTS[rule], vcpu)
        return
    for begin, after, where in run_state.inside(vcpu, first, last):
        if after > start and begin < end and where is not Where.USER:
            worst.take(*_doubt(where, max(begin, start), min(after, end), window, vcpu, run_state), vcpu)


def _worst_of_gaps(
    track: Track, i: int, j: int, start: float, end: float, window: Window, irqchip: Irqchip
) -> str | None:
    """The rule that ``_doubt`` would name for the most telling piece between events ``i`` and ``j``, by three looks.

    "" if the vCPU was in user space all along, None if it takes more than three: where it was is not known throughout,
    or the moment for which the memory was missing is shorter than the stamps tell.
    """
    times, codes, off = track.times, track.codes, window.off
    while i < j and times[i + 1] <= start:
        i += 1
    while i < j and times[j - 1] >= end:
        j -= 1
    inside = codes[i:j].translate(None, OUTSIDE)
    if not inside:
        return ""
    if UNKNOWN in inside or window.core_start + off >= window.core_end - off:
        return None
    begins = window.start + off
    if window.has_core:
        begins, ends = max(begins, window.core_start + off), window.core_end - off
        low, high = max(i, bisect_right(times, begins, i, j + 1) - 1), bisect_left(times, ends, i, j)
    else:
        ends, low, high = math.inf, max(i, bisect_right(times, begins, i, j + 1) - 1), j
    if end > begins and start < ends and low < high and (core := codes[low:high].translate(None, OUTSIDE)):
        if RUN in core:
            whole = start <= window.start - off and not codes[i:j].translate(None, IN_RUN)
            return "run-no-irqchip" if whole and irqchip is Irqchip.USER else "kvm-run"
        if KVM in core:
            return "served"
    if window.has_core and start < ends:
        low = max(i, bisect_right(times, window.start + off, i, j + 1) - 1)
        high = min(bisect_left(times, ends, i, j), bisect_right(times, window.core_start + off, i, j + 1) - 1)
        if low < high and codes[low:high].translate(None, OUTSIDE):
            return "begin-unknown"
    return "edge"


def _doubt(where: Where, start: float, end: float, window: Window, vcpu: Vcpu, run_state: RunState) -> _Doubt:
    """Why a piece of a window, ``[start, end]``, in which ``vcpu`` was ``where``, proves nothing."""
    if math.isinf(window.start) and window.start < 0 and start == window.start:
        return "begin-unknown", NO_BEGIN
    if math.isinf(window.end) and end == window.end:
        return "end-unknown", NO_END
    if where is Where.UNKNOWN:
        return _not_known(start, end, vcpu, run_state)
    if start >= window.core_end - window.off or end <= window.start + window.off:
        return "edge", TEXTS["edge"]
    if end <= window.core_start + window.off:
        return "begin-unknown", TEXTS["begin-unknown"]
    if where is Where.RUN:
        whole = start <= window.start - window.off and end >= window.end + window.off
        rule = "run-no-irqchip" if whole and run_state.irqchip is Irqchip.USER else "kvm-run"
        return rule, TEXTS[rule]
    rule = "served" if where is Where.KVM else "edge"
    return rule, TEXTS[rule]


def _not_known(start: float, end: float, vcpu: Vcpu, run_state: RunState) -> _Doubt:
    lost = run_state.losses.first_in(start, end)
    if lost is not None:
        what = "overwritten" if math.isinf(lost[0]) and not math.isinf(lost[1]) else "lost"
        until = "" if math.isinf(lost[1]) else f" before {lost[1]:.6f}"
        return "lost", f"events were {what}{until}, and {{}} may have run meanwhile"
    first, last = run_state.known(vcpu)
    if start < first:
        return "before-first", f"nothing is known of {{}} before {first:.6f}"
    if end > last:
        return "after-last", f"run state ends at {last:.6f}"
    if run_state.kinds.exits and not run_state.kinds.entries:
        return "no-entries", "kvm_entry was not recorded"
    if run_state.kinds.user_exits and not run_state.kinds.entries:
        return "no-entries", "kvm_entry was not recorded"
    if run_state.kinds.entries and not (run_state.kinds.exits or run_state.kinds.user_exits):
        return "no-exits", "kvm_exit was not recorded"
    return "torn", "events of {} do not fit together"


def _deaths(changes: Changes, removed: Iterable[int], window: Window, run_state: RunState, worst: Worst) -> None:
    """VCPUs that left KVM_RUN inside a delete or the hole as those do that die of it; ``removed`` are the deletes."""
    until = min(window.core_end if window.has_core else window.end, run_state.last)
    for vcpu in run_state.vcpus:
        if vcpu.thread == window.thread or not run_state.may_die(vcpu, window.start, until):
            continue
        found = [
            *run_state.fatal_returns(vcpu, window.start, until),
            *run_state.last_returns(vcpu, window.start, until),
        ]
        for each in sorted(found, key=itemgetter(slice(4))):  # when KVM_RUN began may not be known
            if not window.start < each.time < until:
                continue
            worst.take("died", death(changes, removed, each.time, each.name if each.fatal else ""), vcpu)
            if worst.rank == DIED:
                break
