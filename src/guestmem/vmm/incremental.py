"""A flat view brought up to date where it was touched; the rest is taken over."""

from __future__ import annotations

from collections.abc import Iterable

from .flatview import FlatRange, FlatView, can_merge
from .render import render, render_raw
from .touched import merged

__all__ = ["Slice", "updated"]

Slice = tuple[list[FlatRange], list[FlatRange]]
"""Ranges that went and those that came in their place, of the same bytes, ascending."""


def updated(view: FlatView, windows: list[tuple[int, int]]) -> tuple[FlatView, list[Slice]]:
    """``view`` with ``windows`` rendered anew, and what changed; the same object if nothing did.

    O(k log k) for the k ranges in and beside the windows, and a copy of the list of ranges.
    """
    windows = merged(windows)
    if len(windows) > 64 + len(view) // 16:
        whole = FlatView(view.root, render(view.root))
        return (view, []) if whole.ranges == view.ranges else (whole, [(view.ranges, whole.ranges)])
    slices: list[tuple[int, int, list[FlatRange]]] = []
    for first, last, inside in _grouped(view, windows):
        old = view.ranges[first:last]
        new = [*_outside(old, inside)]
        for low, high in inside:
            new += render_raw(view.root, low, high)
        new.sort(key=lambda each: each.start)
        joined = _joined(new)
        if joined != old:
            slices.append((first, last, joined))
    if not slices:
        return view, []
    result: list[Slice] = [(view.ranges[first:last], new) for first, last, new in slices]
    for first, last, new in reversed(slices):
        view = view.spliced(first, last, new)
    return view, result


def _grouped(view: FlatView, windows: list[tuple[int, int]]) -> Iterable[tuple[int, int, list[tuple[int, int]]]]:
    """Windows with the ranges in them and beside them; windows that share a range are one group."""
    groups: list[tuple[int, int, list[tuple[int, int]]]] = []
    for low, high in windows:
        first, last = view.place(low, high)
        if first and view[first - 1].end == low:
            first -= 1
        if last < len(view) and view[last].start == high:
            last += 1
        if groups and first < groups[-1][1]:
            begun, ended, inside = groups[-1]
            groups[-1] = (begun, max(last, ended), [*inside, (low, high)])
        else:
            groups.append((first, last, [(low, high)]))
    return groups


def _outside(ranges: list[FlatRange], windows: list[tuple[int, int]]) -> Iterable[FlatRange]:
    """The parts of ``ranges`` that no window covers."""
    for each in ranges:
        at = each.start
        for low, high in windows:
            if high <= at or low >= each.end:
                continue
            if low > at:
                yield _cut(each, at, low)
            at = max(at, high)
        if at < each.end:
            yield _cut(each, at, each.end)


def _cut(each: FlatRange, start: int, end: int) -> FlatRange:
    return each._replace(start=start, end=end, offset=each.offset + start - each.start)


def _joined(ranges: list[FlatRange]) -> list[FlatRange]:
    """As ``simplify``; also what a window has cut: two unmergeable halves of one are known by their common way."""
    done: list[FlatRange] = []
    for each in ranges:
        if done and (can_merge(done[-1], each) or _halves(done[-1], each)):
            done[-1] = done[-1]._replace(end=each.end)
        else:
            done.append(each)
    return done


def _halves(a: FlatRange, b: FlatRange) -> bool:
    return a.path is not None and a.path == b.path and a.end == b.start and a.offset + a.size == b.offset
