"""What the page's script draws from: a timeline and its report as columns of small numbers.

A trace may have 10^5 changes, so changes are columns and not objects, addresses are frame numbers (which a double holds
exactly, where byte addresses above 2^53 would be rounded), times are nanoseconds after the first change, and words that
repeat stand once. What slots there were at a time is not told: the script follows the changes as KVM did.
"""

from __future__ import annotations

import errno
import heapq
from typing import TYPE_CHECKING, Any

from ...check import Primitive
from ...memslots.changes import ChangeKind
from ...units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...check import Hole, Report
    from ...traces import RunState, Timeline, Vcpu

__all__ = ["page_data"]

LETTERS = {
    ChangeKind.CREATE: "c",
    ChangeKind.DELETE: "d",
    ChangeKind.MOVE: "m",
    ChangeKind.FLAGS_ONLY: "f",
    ChangeKind.NOTHING: "n",
}
REFUSED = "r"
MOST_STRETCHES = 200_000
"""Stretches in the guest that a page carries; beyond, short stays outside that are far from any hole are left out."""


def page_data(report: Report, timeline: Timeline) -> dict[str, Any]:
    """All that the script needs, as JSON takes it. O(n) in changes, O(n log n) in stretches of vCPUs."""
    index = {id(each): i for i, each in enumerate(timeline.changes)}
    origin = next((each.time for each in timeline.changes if each.time is not None), 0.0) if report.timed else None
    return {
        "timed": report.timed,
        "origin": origin,
        "changes": _changes(timeline, origin, index),
        "holes": _holes(report.holes, index),
        "lanes": [] if origin is None else _lanes(timeline.run_state, report.holes, origin),
    }


def _ns(seconds: float, origin: float) -> int:
    return round((seconds - origin) * 1e9)


def _changes(timeline: Timeline, origin: float | None, index: dict[int, int]) -> dict[str, Any]:
    changes = timeline.changes
    transaction = [-1] * len(changes)
    for each in timeline.transactions:
        for change in each.changes:
            transaction[index[id(change)]] = each.index
    refused = [i for i, each in enumerate(changes) if each.ret < 0]
    return {
        "kind": "".join(LETTERS[each.kind] if each.ret >= 0 else REFUSED for each in changes),
        "space": [each.change.as_id for each in changes],
        "slot": [each.change.slot for each in changes],
        "gfn": [each.change.base_gfn for each in changes],
        "pages": [each.change.npages for each in changes],
        "host": [each.change.userspace_addr >> PAGE_SHIFT for each in changes],
        "flags": [each.change.flags for each in changes],
        "line": [each.line for each in changes],
        "thread": [each.thread for each in changes],
        "ns": None if origin is None else [_ns(each.time or 0.0, origin) for each in changes],
        "transaction": transaction,
        "implied": [i for i, each in enumerate(changes) if each.implied],
        "refused": [[i, _errno(changes[i].ret)] for i in refused],
    }


def _errno(ret: int) -> str:
    return errno.errorcode.get(-ret, str(ret))


def _holes(holes: Sequence[Hole], index: dict[int, int]) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    primitives = [each.value for each in Primitive]
    return {
        "transaction": [hole.transaction for hole in holes],
        "space": [hole.as_id for hole in holes],
        "verdict": [hole.verdict.value for hole in holes],
        "reason": [reasons.setdefault(hole.reason, len(reasons)) for hole in holes],
        "reasons": list(reasons),
        "seconds": [hole.duration for hole in holes],
        "bytes": [hole.nbytes for hole in holes],
        "same": [{True: "the same", False: "other", None: "partly other"}[hole.same_host_memory] for hole in holes],
        "ranges": [
            [[each.start_gfn, each.npages, index[id(each.removed)], index[id(each.restored)]] for each in hole.ranges]
            for hole in holes
        ],
        "primitives": primitives,
        "sets": [
            [
                [
                    [primitives.index(primitive.value) for primitive in each.primitives],
                    [index[id(change)] for change in each.changes],
                ]
                for each in hole.atomic_sets
            ]
            for hole in holes
        ],
    }


def _lanes(state: RunState | None, holes: Sequence[Hole], origin: float) -> list[dict[str, Any]]:
    """One lane a vCPU: when it was in the guest, and between which times it is known that it was not."""
    if state is None:
        return []
    stretches = {vcpu: state.intervals(vcpu) for vcpu in state.vcpus}
    windows = sorted((hole.start, hole.end) for hole in holes if hole.start is not None and hole.end is not None)
    kept = _thinned(stretches, windows)
    return [
        {
            "name": str(vcpu),
            "inside": [_ns(edge, origin) for stretch in kept[vcpu] for edge in stretch],
            "known": [] if state.lost else [_ns(state.first, origin), _ns(state.last, origin)],
            "joined": len(stretches[vcpu]) - len(kept[vcpu]),
        }
        for vcpu in state.vcpus
    ]


Stretch = tuple[float, float]


def _thinned(
    stretches: dict[Vcpu, tuple[Stretch, ...]], windows: Iterable[tuple[float, float]]
) -> dict[Vcpu, list[Stretch]]:
    """At most MOST_STRETCHES, by joining those with the shortest stays outside in between, unless a hole is near."""
    total = sum(map(len, stretches.values()))
    if total <= MOST_STRETCHES:
        return {vcpu: list(each) for vcpu, each in stretches.items()}
    near = list(windows)
    gaps = []
    for vcpu, each in stretches.items():
        at = 0
        for i in range(1, len(each)):
            start, end = each[i - 1][1], each[i][0]
            while at < len(near) and near[at][1] < start:
                at += 1
            if at == len(near) or near[at][0] > end:
                gaps.append((end - start, vcpu.thread, i))
    joined = {(thread, i) for _, thread, i in heapq.nsmallest(total - MOST_STRETCHES, gaps)}
    kept: dict[Vcpu, list[Stretch]] = {}
    for vcpu, each in stretches.items():
        mine = kept[vcpu] = [] if not each else [each[0]]
        for i in range(1, len(each)):
            if (vcpu.thread, i) in joined:
                mine[-1] = mine[-1][0], each[i][1]
            else:
                mine.append(each[i])
    return kept
