"""Whether guest code ran on a vCPU while memory was missing: a proof by the rules of ``rules``, or UNKNOWN.

A trace stamps a call when it starts or when it has returned; KVM acts somewhere in between. So each window has a core,
in which the memory was missing for certain, and an outer bound, outside of which it was there for certain. OPEN is
shown in the core, CLOSED over the bound. Every stamp is taken to be off by its last place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ..traces.evidence import Irqchip, Where
from .rules import RULES, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..traces.evidence import Stretch
    from ..traces.timeline import RecordedChange, RunState, Vcpu
    from .rules import Rule

__all__ = ["Judgement", "Window", "judge", "window_of"]

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


class Judgement(NamedTuple):
    """A verdict, the rule it rests on, the vCPUs that the rule is about, and the same in words."""

    verdict: Verdict
    rule: Rule
    vcpus: tuple[Vcpu, ...]
    reason: str


class _Finding(NamedTuple):
    rule: str
    vcpu: Vcpu | None
    text: str


RANKS = {name: rank for rank, name in enumerate(RULES)}
"""The place of each rule in the table: the more telling first."""
LEAST_RANK = {
    Where.RUN: min(RANKS["kvm-run"], RANKS["run-no-irqchip"]),
    Where.KVM: RANKS["served"],
    Where.GUEST: RANKS["begin-unknown"],
    Where.UNKNOWN: 0,
}
"""The most telling doubt that a piece in each place can be: what is less telling than one that is known is skipped."""


class _Worst:
    """The most telling doubt so far, the first of its rule, and the vCPUs of which it is said."""

    __slots__ = ("about", "finding", "rank")

    def __init__(self) -> None:
        self.finding: _Finding | None = None
        self.rank = len(RANKS)
        self.about: dict[Vcpu, None] = {}

    def take(self, finding: _Finding) -> None:
        """One more doubt."""
        rank = RANKS[finding.rule]
        if rank > self.rank:
            return
        if rank < self.rank:
            self.finding, self.rank = finding, rank
            self.about.clear()
        if finding.vcpu is not None:
            self.about[finding.vcpu] = None


def window_of(changes: Sequence[RecordedChange], removed: int, restored: int, off: float) -> Window:
    """The window between two changes of one transaction, by index: what took memory away, what gave it back.

    The calls of a transaction follow one another: one has returned when the next one begins.
    """
    delete, create = changes[removed], changes[restored]
    start = -math.inf if delete.began is None else delete.began
    end = math.inf if create.ended is None else create.ended
    core_start = core_end = math.nan
    if removed != restored:
        returned = delete.ended if delete.ended is not None else changes[removed + 1].began
        begins = create.began if create.began is not None else changes[restored - 1].ended
        core_start = math.nan if returned is None else returned
        core_end = math.nan if begins is None else begins
    thread = delete.thread if delete.thread == create.thread else None
    return Window(start, core_start, core_end, end, off, thread)


def judge(
    changes: Sequence[RecordedChange],
    windows: Sequence[tuple[int, int]],
    run_state: RunState | None,
    resolution: float = 1e-6,
) -> Judgement:
    """The verdict over all ``windows`` and what it rests on.

    A window is a pair of indices: the change that took memory away, the change that gave it back. ``resolution``: the
    last place of the changes' stamps, in seconds. O(windows · vCPUs · (log events + events in the window)).
    """
    if run_state is None:
        return _unknown("no-run-state", "no run state")
    if any(each.time is None for each in changes):
        return _unknown("no-times", "no times")
    off = resolution + run_state.resolution
    opened: dict[Vcpu, _Finding] = {}
    bounds: list[tuple[RecordedChange, Window]] = []
    for removed, restored in windows:
        window = window_of(changes, removed, restored, off)
        if window.thread is not None:
            began = run_state.last_return_before(window.thread, changes[removed].time or 0.0)
            if began is not None and began > window.start:
                window = window._replace(start=began)
        bounds.append((changes[removed], window))
        for vcpu in run_state.vcpus:
            proof = None if vcpu in opened else _open(window, vcpu, run_state)
            if proof is not None:
                opened[vcpu] = proof
    if opened:
        found = min(opened.values(), key=lambda each: RANKS[each.rule])
        vcpus = tuple(sorted(opened, key=lambda vcpu: (vcpu.thread, vcpu.index or 0)))
        return Judgement(Verdict.OPEN, RULES[found.rule], vcpus, "; ".join(each.text for each in opened.values()))
    worst = _Worst()
    for delete, window in bounds:
        for vcpu in run_state.vcpus:
            _doubts(window, vcpu, run_state, worst)
        for index in run_state.missing:
            worst.take(_Finding("missing-vcpu", None, f"nothing is recorded of vCPU {index}"))
        _deaths(delete, window, run_state, worst)
    if worst.finding is not None:
        rule = RULES[worst.finding.rule]
        return Judgement(Verdict.UNKNOWN, rule, tuple(worst.about), f"{worst.finding.text}; {rule.record}")
    if not run_state.vcpus:
        return _unknown("no-run-state", "no vCPU is known")
    vcpus = run_state.vcpus
    return Judgement(Verdict.CLOSED, RULES["outside"], vcpus, f"{_list(vcpus)} outside KVM from before to after")


def _unknown(rule: str, text: str) -> Judgement:
    return Judgement(Verdict.UNKNOWN, RULES[rule], (), text)


def _list(vcpus: Sequence[Vcpu]) -> str:
    return ", ".join(map(str, vcpus))


def _open(window: Window, vcpu: Vcpu, run_state: RunState) -> _Finding | None:
    """What proves that guest code ran on ``vcpu`` while the memory was missing, or None."""
    start, core_start, core_end, end, off, _ = window
    pieces: Sequence[Stretch] = ()
    if run_state.kinds.entries and run_state.kinds.exits:
        pieces = run_state.stretches(vcpu, core_start, core_end) if window.has_core else ()
        pieces = pieces or run_state.stretches(vcpu, start, end)
    for piece in pieces:
        if piece.where is Where.GUEST:
            moments = [(start, end)]
            if window.has_core:
                moments += [(core_start, core_start), (core_end, core_end)]
            over = any(piece.start + off <= low and high <= piece.end - off for low, high in moments)
            if over or (window.has_core and max(piece.start, core_start + off) < min(piece.end, core_end - off)):
                return _Finding("in-guest", vcpu, f"{vcpu} in the guest")
    if not window.has_core:
        return None
    for time in run_state.guest_exits(vcpu, core_start, core_end):
        if core_start + off < time <= core_end - off:
            return _Finding("guest-exit", vcpu, f"{vcpu} left the guest inside the hole, at {time:.6f}")
    for each in run_state.guest_returns(vcpu, core_start, core_end):
        inside = each.began is not None and each.began > core_start + off
        earliest = core_start + off + (0.0 if inside else SERVED_WITHIN)
        if earliest < each.time <= core_end - off:
            return _Finding("guest-return", vcpu, f"{vcpu} left KVM_RUN inside the hole with {each.name}")
    return None


def _doubts(window: Window, vcpu: Vcpu, run_state: RunState, worst: _Worst) -> None:
    """What keeps ``vcpu`` from having been outside KVM over all of ``window``."""
    own = vcpu.thread and vcpu.thread == window.thread  # program order holds, whatever the stamps
    off = -window.off if own else window.off
    start, end = window.start - off, window.end + off
    first, last = start, end  # where to look: nothing more is learnt far from the hole
    if math.isinf(start):
        worst.take(_Finding("begin-unknown", vcpu, "when the delete began is not known"))
        first = window.core_start if window.has_core else end
    if math.isinf(end):
        worst.take(_Finding("end-unknown", vcpu, "when the create had returned is not known"))
        last = window.core_end if window.has_core else first
    for piece in run_state.stretches(vcpu, first, last):
        where = piece.where
        if where is Where.USER or piece.end <= start or piece.start >= end:
            continue
        least = LEAST_RANK[where]
        if worst.rank < least or (worst.rank == least and vcpu in worst.about):
            continue
        worst.take(_doubt(where, max(piece.start, start), min(piece.end, end), window, vcpu, run_state))


def _doubt(where: Where, start: float, end: float, window: Window, vcpu: Vcpu, run_state: RunState) -> _Finding:
    """Why a piece of a window, ``[start, end]``, in which ``vcpu`` was ``where``, proves nothing."""
    if math.isinf(window.start) and window.start < 0 and start == window.start:
        return _Finding("begin-unknown", vcpu, "when the delete began is not known")
    if math.isinf(window.end) and end == window.end:
        return _Finding("end-unknown", vcpu, "when the create had returned is not known")
    if where is Where.UNKNOWN:
        return _not_known(start, end, vcpu, run_state)
    if start >= window.core_end - window.off or end <= window.start + window.off:
        return _Finding("edge", vcpu, f"{vcpu} came or went too close to the edge to tell")
    if end <= window.core_start + window.off:
        return _Finding("begin-unknown", vcpu, f"{vcpu} was inside before the delete had returned")
    if where is Where.RUN:
        whole = start <= window.start - window.off and end >= window.end + window.off
        if whole and run_state.irqchip is Irqchip.USER:
            text = f"{vcpu} in KVM_RUN throughout, with no irqchip in the kernel: likely in the guest"
            return _Finding("run-no-irqchip", vcpu, text)
        return _Finding("kvm-run", vcpu, f"{vcpu} in KVM_RUN, which is not the guest")
    if where is Where.KVM:
        return _Finding("served", vcpu, f"{vcpu} left the guest, and KVM may have looked at memory for it")
    return _Finding("edge", vcpu, f"{vcpu} came or went too close to the edge to tell")


def _not_known(start: float, end: float, vcpu: Vcpu, run_state: RunState) -> _Finding:
    lost = run_state.losses.first_in(start, end)
    if lost is not None:
        what = "overwritten" if math.isinf(lost[0]) and not math.isinf(lost[1]) else "lost"
        until = "" if math.isinf(lost[1]) else f" before {lost[1]:.6f}"
        return _Finding("lost", vcpu, f"events were {what}{until}, and {vcpu} may have run meanwhile")
    first, last = run_state.known(vcpu)
    if start < first:
        return _Finding("before-first", vcpu, f"nothing is known of {vcpu} before {first:.6f}")
    if end > last:
        return _Finding("after-last", vcpu, f"run state ends at {last:.6f}")
    if run_state.kinds.exits and not run_state.kinds.entries:
        return _Finding("no-entries", vcpu, "kvm_entry was not recorded")
    if run_state.kinds.user_exits and not run_state.kinds.entries:
        return _Finding("no-entries", vcpu, "kvm_entry was not recorded")
    if run_state.kinds.entries and not (run_state.kinds.exits or run_state.kinds.user_exits):
        return _Finding("no-exits", vcpu, "kvm_exit was not recorded")
    return _Finding("torn", vcpu, f"events of {vcpu} do not fit together")


def _deaths(delete: RecordedChange, window: Window, run_state: RunState, worst: _Worst) -> None:
    """VCPUs that left KVM_RUN inside the delete or the hole as those do that die of it."""
    until = min(window.core_end if window.has_core else window.end, run_state.last)
    for vcpu in run_state.vcpus:
        if vcpu.thread == window.thread:
            continue
        found = list(run_state.fatal_returns(vcpu, window.start, until))
        found += [
            each for each in run_state.last_returns(vcpu, window.start, until) if not each.name and not each.fatal
        ]
        for each in sorted(found):
            if not window.start < each.time < until:
                continue
            where = "the delete" if delete.ended is None or each.time <= delete.ended else "the hole"
            how = f"with {each.name} inside {where}: the death itself" if each.fatal else f"inside {where}"
            typical = "" if each.fatal else " and did not come back: the typical death"
            worst.take(_Finding("died", vcpu, f"{vcpu} left KVM_RUN {how}{typical} (line {delete.line})"))
            if worst.rank == RANKS["died"]:
                break
