"""What the page's script draws from: a timeline and its report as columns of small numbers.

A trace may have 10^5 changes, so changes are columns and not objects, addresses are frame numbers (which a double holds
exactly, where byte addresses above 2^53 would be rounded), times are nanoseconds after the first change, and words that
repeat stand once. What slots there were at a time is not told: the script follows the changes as KVM did.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from ...check import Primitive
from ...memslots.changes import ChangeKind
from ...traces.columns import IMPLIED, KIND, KINDS, NO_THREAD, REFUSED
from ...traces.evidence import Where
from ...units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...check import Hole, Report
    from ...memslots.slot import Slot
    from ...traces import RunState, Timeline, Vcpu
    from ...traces.evidence import Stretch
    from ...traces.late_start import AssumedSlot
    from ...traces.timeline import RecordedChange

__all__ = ["page_data"]

LETTERS = {
    ChangeKind.CREATE: "c",
    ChangeKind.DELETE: "d",
    ChangeKind.MOVE: "m",
    ChangeKind.FLAGS_ONLY: "f",
    ChangeKind.NOTHING: "n",
}
REFUSAL = "r"
MOST_STRETCHES = 200_000
"""Pieces of vCPU lanes that a page carries; beyond, runs of short ones that are far from any hole are drawn as one."""


def page_data(report: Report, timeline: Timeline) -> dict[str, Any]:
    """All that the script needs, as JSON takes it. O(n) in changes, O(n log n) in stretches of vCPUs."""
    changes = timeline.changes
    index = {key: i for i, key in enumerate(zip(changes.line, map(IMPLIED.__and__, changes.code), strict=True))}
    origin = changes.time[0] if report.timed else None
    return {
        "timed": report.timed,
        "origin": origin,
        "changes": _changes(timeline, origin),
        "assumed": _assumed(timeline),
        "holes": _holes(report.holes, index),
        "lanes": [] if origin is None else _lanes(timeline.run_state, report.holes, origin),
    }


def _ns(seconds: float, origin: float) -> int:
    return round((seconds - origin) * 1e9)


def _changes(timeline: Timeline, origin: float | None) -> dict[str, Any]:
    changes, transactions = timeline.changes, timeline.transactions
    transaction = [-1] * len(changes)
    for number in range(len(transactions)):
        for i in transactions.indices(number):
            transaction[i] = number
    return {
        "kind": "".join(LETTERS[KINDS[code & KIND]] if code < REFUSED else REFUSAL for code in changes.code),
        "space": [slot >> 16 for slot in changes.slot],
        "slot": [slot & 0xFFFF for slot in changes.slot],
        "gfn": list(changes.base),
        "pages": list(changes.npages),
        "host": [hva >> PAGE_SHIFT for hva in changes.hva],
        "flags": list(changes.flags),
        "line": list(changes.line),
        "thread": [None if thread == NO_THREAD else thread for thread in changes.thread],
        "ns": None if origin is None else [_ns(time, origin) for time in changes.time],
        "transaction": transaction,
        "implied": [i for i, code in enumerate(changes.code) if code & IMPLIED],
        "refused": [[i, _errno(changes.ret[i])] for i, code in enumerate(changes.code) if code >= REFUSED],
    }


def _assumed(timeline: Timeline) -> list[list[int]]:
    """Slots from before the trace: the change that told of it, or -1; space, number or -1, frames, host page, flags."""

    def row(at: int, number: int | None, slot: Slot | AssumedSlot) -> list[int]:
        host = (slot.userspace_addr or 0) >> PAGE_SHIFT
        return [at, slot.as_id, -1 if number is None else number, slot.base_gfn, slot.npages, host, slot.flags]

    told = [row(index, slot.id, slot) for index, slot in sorted(timeline.assumed.items())]
    return told + [row(-1, each.slot, each) for each in timeline.untouched]


def _errno(ret: int) -> str:
    return errno.errorcode.get(-ret, str(ret))


def _holes(holes: Sequence[Hole], index: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    rules: dict[str, int] = {}
    primitives = [each.value for each in Primitive]

    def at(change: RecordedChange) -> int:
        return index[change.line, IMPLIED * change.implied]

    holes = list(holes)
    return {
        "transaction": [hole.transaction for hole in holes],
        "space": [hole.as_id for hole in holes],
        "verdict": [hole.verdict.value for hole in holes],
        "reason": [reasons.setdefault(hole.reason, len(reasons)) for hole in holes],
        "reasons": list(reasons),
        "rule": [rules.setdefault(hole.rule.evidence, len(rules)) for hole in holes],
        "rules": list(rules),
        "seconds": [hole.duration for hole in holes],
        "bytes": [hole.nbytes for hole in holes],
        "same": [{True: "the same", False: "other", None: "partly other"}[hole.same_host_memory] for hole in holes],
        "ranges": [
            [[each.start_gfn, each.npages, at(each.removed), at(each.restored)] for each in hole.ranges]
            for hole in holes
        ],
        "primitives": primitives,
        "sets": [
            [
                [
                    [primitives.index(primitive.value) for primitive in each.primitives],
                    [at(change) for change in each.changes],
                ]
                for each in hole.atomic_sets
            ]
            for hole in holes
        ],
    }


def _lanes(state: RunState | None, holes: Sequence[Hole], origin: float) -> list[dict[str, Any]]:
    """One lane a vCPU: pieces that follow one another, each with a letter for where the vCPU was.

    ``edges`` has one more entry than ``where`` has letters; where infinity would be, the trace's first or last event.
    """
    if state is None:
        return []
    pieces = {vcpu: list(state.stretches(vcpu)) for vcpu in state.vcpus}
    windows = sorted((hole.start, hole.end) for hole in holes if hole.start is not None and hole.end is not None)
    lanes = []
    for vcpu, kept in _thinned(pieces, windows).items():
        edges = [each[0] for each in kept] + [kept[-1][1]]
        edges[0], edges[-1] = max(edges[0], min(state.first, edges[1])), min(edges[-1], max(state.last, edges[-2]))
        lanes.append(
            {
                "name": str(vcpu),
                "edges": [_ns(edge, origin) for edge in edges],
                "where": "".join(each[2] for each in kept),
                "joined": len(pieces[vcpu]) - len(kept),
            }
        )
    return lanes


Piece = tuple[float, float, str]
WHERE = {Where.GUEST: "g", Where.RUN: "r", Where.KVM: "k", Where.USER: "u", Where.UNKNOWN: "?"}
SEVERAL = "m"


def _thinned(
    pieces: Mapping[Vcpu, Sequence[Stretch]], windows: Iterable[tuple[float, float]]
) -> dict[Vcpu, list[Piece]]:
    """At most about MOST_STRETCHES pieces: runs of short ones become one, unless a hole is near or one is not known."""
    named = {vcpu: [(each.start, each.end, WHERE[each.where]) for each in mine] for vcpu, mine in pieces.items()}
    if sum(map(len, named.values())) <= MOST_STRETCHES:
        return named
    near = list(windows)
    lengths = sorted(end - start for mine in named.values() for start, end, _ in mine)
    for short in lengths[:: max(1, len(lengths) // 16)][1:]:
        kept = {vcpu: _joined(mine, short, near) for vcpu, mine in named.items()}
        if sum(map(len, kept.values())) <= MOST_STRETCHES:
            break
    return kept


def _joined(pieces: Sequence[Piece], short: float, near: Sequence[tuple[float, float]]) -> list[Piece]:
    """Runs of pieces that are not longer than ``short``, and known, and in no window, each as one."""
    kept: list[Piece] = []
    at, open_run = 0, False
    for start, end, where in pieces:
        while at < len(near) and near[at][1] < start:
            at += 1
        free = at == len(near) or near[at][0] > end
        joins = free and where != WHERE[Where.UNKNOWN] and end - start <= short
        if joins and open_run:
            kept[-1] = kept[-1][0], end, SEVERAL
        else:
            kept.append((start, end, where))
        open_run = joins
    return kept
