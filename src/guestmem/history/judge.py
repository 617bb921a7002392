"""Whether there is one instant for each update, in order, that explains every access.

An access that saw update i done has its moment after the instant t_i, so t_i is no later than the access's end; one
that saw it not done has its moment before, so t_i is no earlier than its start. Nothing else binds t_i but the order
of the updates. So the least t_i that can be is the latest start among all that saw i, or one before i, not done, and
it has to be no later than the earliest end among those that saw i done. For one update: the latest start of one that
saw old is before the earliest end of one that saw new.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .access import Access, Update

__all__ = ["Judgement", "Verdict", "judge"]


class Verdict(enum.Enum):
    """What can be said."""

    PASS = "pass"  # noqa: S105 - no password
    """There are instants that explain all accesses, and each update was seen not done and done."""
    FAIL = "fail"
    """No instants explain the accesses of the witness."""
    UNKNOWN = "could not look"
    """Nothing contradicts, but an update was not seen from both sides, or an access fits no schedule that was tried."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found, with its evidence.

    ``instants``: for PASS, the earliest that explain all, by update. ``witness``: for FAIL, the accesses that
    contradict each other; one, if it contradicts an update's own interval. ``reason``: in words.
    ``old`` and ``new``: how many accesses saw the first, or the only, update not done and done.
    """

    verdict: Verdict
    reason: str
    instants: tuple[float, ...] = ()
    witness: tuple[Access, ...] = ()
    accesses: int = 0
    old: int = 0
    new: int = 0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "instants": list(self.instants),
            "witness": [
                {"start": each.start, "end": each.end, "after": each.after, "before": each.before}
                | {key: value for key in ("who", "where") if (value := getattr(each, key))}
                for each in self.witness
            ],
            "accesses": self.accesses,
            "old": self.old,
            "new": self.new,
        }


def judge(accesses: Iterable[Access], updates: int | Iterable[Update] = 1) -> Judgement:
    """Judge a history of ``updates`` (how many, or with their own intervals), made in the order of their numbers.

    O(n + m) for n accesses and m updates; memory O(m), and what is ambiguous. ValueError for an access of an update
    that there is not, or updates that are not numbered 1, 2, … .

    >>> judge([Access.old(0, 5), Access.new(3, 9)]).instants
    (0,)
    >>> verdict = judge([Access.new(0, 2, who="vCPU 0"), Access.old(4, 6, who="vCPU 1")])
    >>> verdict.verdict.value, verdict.reason
    ('fail', 'vCPU 1 saw update 1 not done from 4 on, after vCPU 0 had seen it done until 2')
    >>> judge([Access.new(0, 2)]).verdict.value
    'could not look'
    """
    windows = _windows(updates)
    count = len(windows)
    floor: list[Access | None] = [None] * (count + 1)
    """By update: the access that saw it not done and started last."""
    ceiling: list[Access | None] = [None] * (count + 1)
    """By update: the access that saw it done and ended first."""
    ambiguous: list[Access] = []
    seen_old, seen_new = [0] * (count + 1), [0] * (count + 1)
    total = 0
    for access in accesses:
        total += 1
        if access.neither:
            who = access.who or "an access"
            return Judgement(Verdict.FAIL, f"{who} saw what was never there", witness=(access,), accesses=total)
        _known(access, count)
        if access.others:
            ambiguous.append(access)
            continue
        after, before = access.after, access.before
        if before is not None:
            seen_old[before] += 1
            held = floor[before]
            if held is None or access.start > held.start:
                floor[before] = access
        if after:
            seen_new[after] += 1
            held = ceiling[after]
            if held is None or access.end < held.end:
                ceiling[after] = access
    counts: dict[str, Any] = {"accesses": total, "old": seen_old[1] if count else 0, "new": seen_new[1] if count else 0}
    instants: list[float] = []
    at, latest, which = float("-inf"), None, 0
    for number in range(1, count + 1):
        window, low, high = windows[number - 1], floor[number], ceiling[number]
        if window.start > at:
            at, latest, which = window.start, None, number
        if low is not None and low.start > at:
            at, latest, which = low.start, low, number
        if high is not None and high.end < at:
            reason = _contradiction(high, number, latest, which, at)
            return Judgement(Verdict.FAIL, reason, witness=(high,) if latest is None else (high, latest), **counts)
        if window.end < at:
            who = "an update before it" if latest is None else latest.who or "an access"
            reason = f"update {number} was over at {window.end}, and {who} puts it at {at} or later"
            return Judgement(Verdict.FAIL, reason, witness=() if latest is None else (latest,), **counts)
        instants.append(at)
    astray = [each for each in ambiguous if not any(_fits(each, span, instants) for span in _spans(each))]
    if astray:
        reason = (
            f"{len(astray)} of {len(ambiguous)} accesses that can be explained in several ways fit no tried schedule"
        )
        return Judgement(Verdict.UNKNOWN, reason, witness=(astray[0],), **counts)
    unseen = [n for n in range(1, count + 1) if not (_any(seen_old[1 : n + 1]) and _any(seen_new[n:]))]
    if unseen:
        side = "done" if not _any(seen_new[unseen[0] :]) else "not done"
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        reason = f"no access saw update {unseen[0]}{more} {side}, of {total}"
        return Judgement(Verdict.UNKNOWN, reason, **counts)
    return Judgement(Verdict.PASS, f"{total} accesses are explained", instants=tuple(instants), **counts)


def _windows(updates: int | Iterable[Update]) -> list[Update]:
    if isinstance(updates, int):
        if updates < 1:
            raise ValueError(f"updates: {updates} is not at least 1")
        return [Update(number) for number in range(1, updates + 1)]
    found = list(updates)
    if not found or [each.number for each in found] != list(range(1, len(found) + 1)):
        raise ValueError("updates: they are not numbered 1, 2, … in order")
    return found


def _known(access: Access, count: int) -> None:
    for after, before in _spans(access):
        if after > count or (before is not None and before > count):
            raise ValueError(f"access: it saw update {max(after, before or 0)}, and there are {count}")


def _spans(access: Access) -> tuple[tuple[int, int | None], ...]:
    return ((access.after, access.before), *access.others)


def _fits(access: Access, span: tuple[int, int | None], instants: list[float]) -> bool:
    """Whether an access has a moment between the two instants."""
    after, before = span
    return (not after or instants[after - 1] <= access.end) and (before is None or instants[before - 1] >= access.start)


def _any(counts: list[int]) -> bool:
    return any(counts)


def _contradiction(high: Access, number: int, latest: Access | None, which: int, at: float) -> str:
    done = high.who or "an access"
    if latest is None:
        return f"{done} saw update {number} done until {high.end}, and update {which} did not begin before {at}"
    undone = latest.who or "an access"
    it = "it" if which == number else f"update {number}"
    return (
        f"{undone} saw update {which} not done from {latest.start} on, after {done} had seen {it} done until {high.end}"
    )
