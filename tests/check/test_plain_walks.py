"""Plain transactions that are walked many at once have the holes, and leave behind, what one after the other has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from guestmem.check import check, late, report
from guestmem.check.missing import walk
from guestmem.traces.columns import CREATE, NO_SLOT, Changes, Transactions
from guestmem.traces.grouping import group
from guestmem.traces.late_start import AssumedSlot
from guestmem.traces.replay import Replay
from guestmem.traces.timeline import Timeline

if TYPE_CHECKING:
    import random

    from guestmem.check import Report

plain_walks = pytest.importorskip("guestmem.check.plain_walks")
PAGE = 4096
HOST = 0x7F0000000000


class Machine:
    """Slots of a few pages, which are split, merged, grown, switched off, and made again, some with other flags."""

    def __init__(self, rng: random.Random) -> None:
        self._slots: dict[int, tuple[int, int, int]] = {40: (90, 4, 0), 41: (94, 5, 0)}
        """First page, pages, flags; some were there before."""
        assumed = [
            AssumedSlot(0, slot, page, pages, HOST + page * PAGE, flags)
            for slot, (page, pages, flags) in self._slots.items()
        ]
        self._rng, self._replay = rng, Replay("", tuple(assumed))
        self._time, self._line = 1.0, 0
        self._space = 0

    def _call(self, slot: int, page: int, pages: int, flags: int, host: int = HOST) -> None:
        self._line += 1
        self._time += self._rng.choice((0.0, 1e-4, 1e-4, 2e-3, -1e-4))
        self._replay.change(
            self._line,
            "",
            slot=slot | self._space << 16,
            flags=flags,
            gpa=page * PAGE,
            size=pages * PAGE,
            hva=host + page * PAGE,
            ret=0,
            time=None if self._rng.random() < 0.02 else self._time,
            thread=self._rng.choice((7,) * 30 + (8,)),
            began=None,
            ended=self._time,
        )
        if pages:
            self._slots[slot] = page, pages, flags
        else:
            del self._slots[slot]

    def _delete(self, slot: int) -> tuple[int, int, int]:
        there = self._slots[slot]
        self._call(slot, there[0], 0, 0)
        return there

    def _free(self) -> int:
        return next(slot for slot in range(99) if slot not in self._slots)

    def step(self) -> None:
        """One transaction."""
        rng = self._rng
        self._time += rng.choice((0.001, 0.004, 0.02, 0.02, 0.02, 2.0))
        if not self._slots or (len(self._slots) < 6 and rng.random() < 0.2):
            page = 100 * self._line
            self._call(self._free(), page, rng.randrange(1, 9), 0)
            return
        slot = rng.choice(list(self._slots))
        kind = rng.random()
        page, pages, flags = self._delete(slot)
        flags ^= rng.random() < 0.1
        after = [each for each, (start, *_) in self._slots.items() if start == page + pages]
        end = page + pages
        has_room = all(start >= end + 2 or start + count <= end for start, count, _ in self._slots.values())
        if kind < 0.1 and has_room:
            self._call(slot, page, pages, flags)
            self._call(self._free(), page + pages, 2, flags)
        elif kind < 0.4:
            self._call(slot, page, pages, flags, HOST if rng.random() < 0.9 else 2 * HOST)
        elif kind < 0.7 and pages > 1:
            cut = rng.randrange(1, pages)
            parts = [(page, cut), (page + cut, pages - cut - (rng.random() < 0.1))]
            for start, count in rng.sample(parts, 2):
                if count:
                    self._call(self._free(), start, count, flags)
        elif kind < 0.9:
            if after:
                pages += self._delete(after[0])[1]
            self._call(slot, page, pages, flags)
        elif kind < 0.95:
            self._call(slot, page, pages + has_room, 0)

    def timeline(self) -> Timeline:
        changes = self._replay.changes
        return Timeline("", "qemu", changes, group(changes), gap=0.005)


def found(timeline: Timeline) -> tuple[object, ...]:
    told: Report = check(timeline, jobs=1)
    longest = told.holes.longest  # type: ignore[attr-defined]
    return told.as_dict(), list(told.holes), longest, told.holes.flag_changes, repr(told)  # type: ignore[attr-defined]


def is_as_walked(run: Any, timeline: Timeline) -> None:
    """Each of its holes has the size that ``walk`` finds, and lasts as long as its stamps say."""
    changes = timeline.changes
    for i, (npages, seconds) in enumerate(zip(run.npages, run.seconds, strict=True)):
        indices = timeline.transactions.indices(run.first + i)
        walked = walk(changes, indices)
        assert walked is not None
        assert not walked.left
        assert sum(end - start for start, end, *_ in walked.returned) == npages
        took = max(changes.time[each[3]] for each in walked.returned)
        took -= min(changes.time[each[2]] for each in walked.returned)
        assert seconds == max(took, 0.0)
        assert not any(math.isnan(changes.time[i]) for i in indices)


def test_those_that_leave_nothing_are_counted_as_a_whole(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """By what they were told apart, and the longest pause since anything but time told it."""
    for _ in range(300):
        changes, count = Changes(), rng.randrange(2, 12)
        for i in range(count):
            changes.append(0, i, 1, 0, 0, CREATE, NO_SLOT, i, 0, 7, 1.0, 1.0, 1.0)
        transactions = Transactions(changes)
        whys = bytes([0, *(rng.choice((1, 1, 1, 2, 3, 4, 5)) for _ in range(count - 1))])
        pauses = [rng.random() if why == 1 else 0.0 for why in whys]
        transactions.begin_all(list(range(count)), whys, pauses)
        told = []
        for many in (0, 1 << 60):
            monkeypatch.setattr(late, "MANY", many)
            later = late.LateReturns(transactions)
            later.follow(0, ())
            cut = rng.randrange(1, count)
            later.follow_all(1, cut, {})
            later.follow_all(cut, count, {})
            told.append((later._spaces[0].mark, later._spaces[0].pause))
        assert told[0] == told[1]


def test_of_machines(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    plain = walked = 0
    for turn in range(40):
        machine = Machine(rng)
        for _ in range(rng.choice((5, 60, 200))):
            machine.step()
        timeline = machine.timeline()
        alone = found(timeline)
        with monkeypatch.context() as patch:
            patch.setattr(report, "MANY_PLAIN", 0)
            patch.setattr(report, "BULK", rng.choice((7, 50, 1 << 16)))
            patch.setattr(plain_walks, "SHORTEST", rng.choice((1, 2, 5)))
            patch.setattr(late, "MANY", rng.choice((0, 3)))
            together = found(timeline)
            runs = plain_walks.plain_runs(timeline.transactions, 0, len(timeline.transactions))
        assert together == alone, turn
        for run in runs:
            is_as_walked(run, timeline)
        plain += sum(map(len, runs))
        walked += len(timeline.transactions)
    assert walked * 0.9 > plain > walked / 3, (plain, walked)


def test_of_a_slot_that_no_change_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its delete is not plain, since the columns do not have it: not even where something else stands in its place."""
    monkeypatch.setattr(plain_walks, "SHORTEST", 1)
    replay = Replay("", (AssumedSlot(0, 0, 90, 4, HOST, 0),))
    for i, pages in enumerate((0, 2, 0, 1, 0)):
        time = i // 2 + i / 1e4
        replay.change(
            *(i + 1, ""), slot=0, flags=0, gpa=90 * PAGE, size=pages * PAGE, hva=HOST, ret=0, time=time, thread=7,
            began=time, ended=time,
        )  # fmt: skip
    transactions = group(replay.changes)
    assert [list(transactions.indices(i)) for i in range(3)] == [[0, 1], [2, 3], [4]]
    assert plain_walks.plain_runs(transactions, 0, 3) == []


def test_of_two_that_last_as_long_the_larger_is_the_longest() -> None:
    numpy = pytest.importorskip("numpy")
    seconds, other = numpy.array([0.5, 1.0, 1.0, 1.0]), numpy.zeros(4, bool)
    holes = plain_walks.PlainHoles(5, numpy.array([9, 1, 3, 3]), seconds, other)
    assert holes.longest == ((1.0, 3), 2)
