"""More than holes: what in a recorded boot has hurt other VMMs, each with its lines.

A remark is no verdict: it says what is there, why it matters, and who was bitten by it. ``LINTS`` lists them all, and
docs/traces.md has the same table. None is counted by ``--fail-on``.
"""

from __future__ import annotations

import itertools
import operator
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from ..traces.columns import CREATE, DELETE, KIND, MOVE, NOTHING, REFUSED
from ..units import PAGE_SHIFT, format_ns
from .lints import LINTS, Lint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..memslots.slot import Slot
    from ..traces.columns import Changes
    from ..traces.timeline import Timeline
    from .holes import Holes

__all__ = ["Remark", "lint"]

KVM_MEM_GUEST_MEMFD = 4
EEXIST = -17
LEGACY_END = 1 << (20 - PAGE_SHIFT)
"""Frames below belong to firmware and option ROMs; no driver puts a buffer across their slots."""
MANY_CHANGES = 200
MANY_FRESH_IDS = 8
LEAKING_STEPS = 8
LINES_SHOWN = 6
REMARKS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that ``lint`` found: its kind, in which lines, and what it is in this trace."""

    lint: Lint
    lines: tuple[int, ...]
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The remark as JSON takes it."""
        return {
            "lint": self.lint.name,
            "lines": list(self.lines),
            "text": self.text,
            "why": self.lint.why,
            "bitten": self.lint.bitten,
        }


def lint(timeline: Timeline, holes: Holes) -> tuple[Remark, ...]:
    """All remarks on ``timeline``, in the order of ``LINTS``. ``holes`` are those that ``check`` found. O(n log n)."""
    changes = timeline.changes
    removed = _removed_flags(changes)
    found = [
        *_adds_without_delete(timeline),
        *_ids(timeline),
        *_neighbours(timeline),
        *_guest_memfds(timeline, removed),
        *_dirty_logs(changes, removed),
        *_toggles(holes),
        *_many(timeline),
    ]
    by_name: dict[str, list[Remark]] = {name: [] for name in LINTS}
    for each in found:
        by_name[each.lint.name].append(each)
    return tuple(remark for same in by_name.values() for remark in _few(same))


def _few(same: list[Remark]) -> list[Remark]:
    """At most REMARKS_SHOWN of a kind; the last says how many more there are."""
    if len(same) <= REMARKS_SHOWN:
        return same
    more = len(same) - REMARKS_SHOWN + 1
    rest = Remark(same[0].lint, same[REMARKS_SHOWN - 1].lines, f"and {more} more of the kind, from this one on")
    return [*same[: REMARKS_SHOWN - 1], rest]


def _remark(name: str, lines: Sequence[int], text: str) -> Remark:
    return Remark(LINTS[name], tuple(dict.fromkeys(lines)), text)


def _frames(start: int, end: int) -> str:
    return f"[{start << PAGE_SHIFT:#x}, {end << PAGE_SHIFT:#x})"


def _removed_flags(changes: Changes) -> list[tuple[int, int, int]]:
    """Changes that took away a slot which had flags: their place, the flags, the number of frames."""
    if not changes.seen_flags and min(changes.old, default=0) >= -1:
        return []
    found = []
    for i, code in enumerate(changes.code):
        if code < REFUSED and code & KIND in (DELETE, MOVE):
            old = changes.old_slot(i)
            if old is not None and old.flags:
                found.append((i, old.flags, old.npages))
    return found


def _lines(changes: Changes, indices: Iterable[int]) -> list[int]:
    return [changes.line[i] for i in itertools.islice(indices, LINES_SHOWN)]


def _adds_without_delete(timeline: Timeline) -> Iterator[Remark]:
    """What KVM refused with EEXIST, and what VFIO's listener was told twice."""
    for each in timeline.refused:
        if each.ret == EEXIST:
            frames = _frames(each.change.base_gfn, each.change.base_gfn + each.change.npages)
            yield _remark("add-without-delete", [each.line], f"slot {each.change.slot}: {frames}: KVM said EEXIST")
    starts: list[int] = []
    mapped: dict[int, tuple[int, int]] = {}
    for dma in timeline.dma_changes:
        if not dma.size:
            continue
        end = dma.start + dma.size
        i = bisect_right(starts, dma.start)
        near = [starts[k] for k in range(max(i - 1, 0), bisect_left(starts, end))]
        met = [start for start in near if mapped[start][0] > dma.start]
        if dma.userspace_addr is None:
            for start in met:
                starts.remove(start)
                del mapped[start]
            continue
        if met:
            line = mapped[met[0]][1]
            text = f"[{dma.start:#x}, {end:#x}) is mapped for devices already (line {line}), and was not unmapped"
            yield _remark("add-without-delete", [line, dma.line], text)
        if dma.start not in mapped:
            insort(starts, dma.start)
        mapped[dma.start] = end, dma.line


def _ids(timeline: Timeline) -> Iterator[Remark]:
    """Whether freed numbers are used again, and whether slots pile up."""
    changes = timeline.changes
    free: dict[int, set[int]] = defaultdict(set)
    used: dict[int, set[int]] = defaultdict(set)
    fresh: dict[int, list[int]] = defaultdict(list)
    reused: set[int] = set()
    spaces = {slot >> 16 for slot in set(changes.slot)}
    for i, (code, slot) in enumerate(zip(changes.code, changes.slot, strict=True)):
        as_id = slot >> 16
        if as_id in reused or code >= REFUSED:
            continue
        if code & KIND == DELETE:
            free[as_id].add(slot)
        elif code & KIND == CREATE:
            if slot in free[as_id]:
                reused.add(as_id)
                if reused == spaces:
                    break
            elif free[as_id] and slot not in used[as_id]:
                fresh[as_id].append(i)
            used[as_id].add(slot)
    for as_id, creates in fresh.items():
        if as_id not in reused and len(creates) >= MANY_FRESH_IDS:
            count, idle = len(used[as_id]), len(free[as_id])
            text = (
                f"{count} numbers for at most {_most_slots(timeline)} slots at a time; {idle} were free and not taken"
            )
            yield _remark("ids-only-grow", _lines(changes, creates), text)
    grown: list[tuple[int, int]] = []
    for number in reversed(range(len(timeline.transactions))):
        step, took = _step(timeline, number)
        if took and step <= 0:
            break
        if took:
            grown.append((step, changes.line[timeline.transactions.indices(number)[0]]))
    if len(grown) >= LEAKING_STEPS:
        more, live = sum(step for step, _ in grown), sum(map(len, _final_slots(changes).values()))
        text = f"the last {len(grown)} steps that delete left {more} slots more; {live} at the end"
        yield _remark("slots-leaked", [line for _, line in grown[::-1][:LINES_SHOWN]], text)


def _step(timeline: Timeline, number: int) -> tuple[int, bool]:
    """How many slots more there are after a transaction, and whether it deletes some."""
    kinds = [timeline.changes.code[i] & KIND for i in timeline.transactions.indices(number)]
    return kinds.count(CREATE) - kinds.count(DELETE), DELETE in kinds


def _most_slots(timeline: Timeline) -> int:
    """The most slots that there were after a transaction."""
    steps = (_step(timeline, number)[0] for number in range(len(timeline.transactions)))
    return max(itertools.accumulate(steps), default=0)


def _final_slots(changes: Changes) -> dict[int, list[tuple[Slot, int]]]:
    """The slots at the end and the lines that made them, by address space and frame."""
    live: dict[int, int] = {}
    left = set(changes.slot)
    codes, slots = changes.code, changes.slot
    for i in range(len(codes) - 1, -1, -1):  # the last change of a slot tells
        if slots[i] in left and codes[i] < REFUSED and codes[i] & KIND != NOTHING:
            left.discard(slots[i])
            if codes[i] & KIND != DELETE:
                live[slots[i]] = i
            if not left:
                break
    spaces: dict[int, list[tuple[Slot, int]]] = defaultdict(list)
    for slot, i in live.items():
        spaces[slot >> 16].append((changes.made_by(i), changes.line[i]))
    for pairs in spaces.values():
        pairs.sort(key=lambda pair: pair[0].base_gfn)
    return spaces


def _neighbours(timeline: Timeline) -> Iterator[Remark]:
    """Slots at the end of the trace that meet in guest memory and not in host memory."""
    for as_id, pairs in _final_slots(timeline.changes).items():
        for (low, low_line), (high, high_line) in itertools.pairwise(pairs):
            meets = low.end_gfn == high.base_gfn and low.base_gfn >= LEGACY_END
            rom = (low.flags | high.flags) & KVM_MEM_READONLY
            if meets and not rom and low.userspace_addr + (low.npages << PAGE_SHIFT) != high.userspace_addr:
                at = f"{'as 1: ' if as_id else ''}{high.base_gfn << PAGE_SHIFT:#x}"
                text = f"slots {low.id} and {high.id} meet at {at}, and their host memory does not"
                yield _remark("split-buffer", [low_line, high_line], text)


def _guest_memfds(timeline: Timeline, removed: list[tuple[int, int, int]]) -> Iterator[Remark]:
    """What is deleted of, bound twice to, or bound elsewhere from a guest_memfd."""
    deleted = [each for each in removed if each[1] & KVM_MEM_GUEST_MEMFD]
    if deleted:
        npages = sum(each[2] for each in deleted)
        text = f"{len(deleted)} deletes of slots with a guest_memfd, {npages} pages in all"
        yield _remark("guest-memfd-deleted", _lines(timeline.changes, (each[0] for each in deleted)), text)
    if not timeline.guest_memfds:
        return
    bound: dict[int, _Bound] = defaultdict(_Bound)
    where: dict[tuple[int, int], int] = {}
    base: dict[int, tuple[int, int]] = {}
    for each in timeline.changes:
        key = each.change.as_id, each.change.slot
        if each.removed is not None and each.change.deletes and key in where:
            bound[where.pop(key)].drop(key)
        binding = timeline.guest_memfds.get(each.line)
        if binding is None or each.change.npages == 0:
            continue
        fd, offset = binding
        end = offset + (each.change.npages << PAGE_SHIFT)
        for start, stop, other, line in bound[fd].meeting(offset, end):
            if other != key:
                span = f"[{max(start, offset):#x}, {min(stop, end):#x})"
                text = f"guest_memfd {fd}, {span} is slot {other[1]}'s and slot {key[1]}'s"
                yield _remark("guest-memfd-bound-twice", [line, each.line], text)
        if not each.applied:
            continue
        if key not in where:
            where[key] = fd
            bound[fd].add(offset, end, key, each.line)
        at, line = base.setdefault(fd, (each.change.userspace_addr - offset, each.line))
        if at != each.change.userspace_addr - offset:
            text = (
                f"guest_memfd {fd} at offset {offset:#x} has userspace_addr {each.change.userspace_addr:#x}; by line "
                f"{line} it would be {at + offset:#x}"
            )
            yield _remark("guest-memfd-elsewhere", [line, each.line], text)


class _Bound:
    """Ranges of one file that are bound to slots now, by offset."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, tuple[int, int], int]] = []

    def add(self, start: int, end: int, key: tuple[int, int], line: int) -> None:
        """Bind ``[start, end)``."""
        insort(self._ranges, (start, end, key, line))

    def drop(self, key: tuple[int, int]) -> None:
        """The slot ``key`` is gone. O(ranges)."""
        self._ranges = [each for each in self._ranges if each[2] != key]

    def meeting(self, start: int, end: int) -> list[tuple[int, int, tuple[int, int], int]]:
        """Those that meet ``[start, end)``, as far as the ones before do not overlap each other."""
        i = bisect_right(self._ranges, start, key=lambda each: each[0])
        last = bisect_left(self._ranges, end, key=lambda each: each[0])
        return [each for each in self._ranges[max(i - 1, 0) : last] if each[1] > start][:LINES_SHOWN]


def _dirty_logs(changes: Changes, removed: list[tuple[int, int, int]]) -> Iterator[Remark]:
    """Slots that went with their log on."""
    lost = [each for each in removed if each[1] & KVM_MEM_LOG_DIRTY_PAGES]
    if lost:
        npages = sum(each[2] for each in lost)
        text = f"{len(lost)} deletes of slots that were logged, {npages} pages in all"
        yield _remark("dirty-log-lost", _lines(changes, (each[0] for each in lost)), text)


def _toggles(holes: Holes) -> Iterator[Remark]:
    """Holes of which only a flag was the reason."""
    for index in holes.flag_changes:
        for each in holes[index].atomic_sets:
            removed = [one.removed for one in each.changes if one.removed is not None]
            added = [one.added for one in each.changes if one.added is not None]
            if len(removed) != 1 or len(added) != 1:
                continue
            old, new = removed[0], added[0]
            same = (old.base_gfn, old.npages, old.userspace_addr) == (new.base_gfn, new.npages, new.userspace_addr)
            changed = old.flags ^ new.flags
            if same and changed:
                names = {KVM_MEM_LOG_DIRTY_PAGES: "KVM_MEM_LOG_DIRTY_PAGES", KVM_MEM_READONLY: "KVM_MEM_READONLY"}
                flags = ", ".join(name for bit, name in names.items() if changed & bit) or f"flags {changed:#x}"
                frames = _frames(old.base_gfn, old.end_gfn)
                yield _remark("toggle-by-delete", each.lines, f"{frames}: only {flags} differs")


def _many(timeline: Timeline) -> Iterator[Remark]:
    """Hundreds of updates, and what they took by the trace's own times."""
    changes, transactions = timeline.changes, timeline.transactions
    counted = Counter(changes.code)
    applied = sum(count for code, count in counted.items() if code < REFUSED)
    if applied < MANY_CHANGES:
        return
    text = f"{applied} changes in {len(transactions)} transactions"
    took = [] if timeline.format == "qemu" else list(map(operator.sub, changes.ended, changes.began))
    done = map(operator.lt, changes.code, itertools.repeat(REFUSED))
    timed = [seconds for seconds in itertools.compress(took, done) if seconds == seconds]  # noqa: PLR0124 (a number)
    if timed:
        text += f"; the calls took {format_ns(sum(timed) * 1e9)}, {format_ns(sum(timed) / len(timed) * 1e9)} each"
    else:
        spans = transactions.spans()
        if spans := [seconds for seconds in spans if seconds == seconds]:  # noqa: PLR0124 (a number)
            text += f"; from the first to the last of each transaction {format_ns(sum(spans) * 1e9)} in all"
    span = timeline.span
    if span is not None:
        text += f", within {span[1] - span[0]:.3g} s"
    places = range(len(changes))
    first, last = (next(i for i in each if changes.code[i] < REFUSED) for each in (places, reversed(places)))
    yield _remark("many-updates", [changes.line[first], changes.line[last]], text)
