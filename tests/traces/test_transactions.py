"""Changes are grouped as the VMM meant them: deletes, then creates, by one thread, close in time."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from guestmem import traces

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.traces import RecordedChange, Timeline

CREATE, DELETE, FLAGS, SAME = "create", "delete", "flags-only", "nothing"


def read(tmp_path: Path, events: list[tuple[str, int, int, float | None]], gap: float = 0.005) -> Timeline:
    """Write (what, slot, thread, time) as QEMU does, each slot at a place of its own, and read it."""
    flags: dict[int, int] = {}
    lines = []
    for what, slot, thread, time in events:
        if what == CREATE:
            flags[slot] = 0
        elif what == FLAGS:
            flags[slot] ^= 1
        size = 0 if what == DELETE else 0x1000
        stamp = "" if time is None else f"{thread}@{time:.6f}:"
        gpa = (slot & 0xFFFF) << 16
        shown = 0 if what == DELETE else flags[slot]
        lines.append(
            f"{stamp}kvm_set_user_memory Slot#{slot} flags={shown:#x} gpa={gpa:#x} size={size:#x} ua={gpa:#x} ret=0\n"
        )
    path = tmp_path / "trace.log"
    path.write_text("".join(lines))
    return traces.read(path, gap=gap)


def lines_of(timeline: Timeline) -> list[list[int]]:
    return [[each.line for each in group.changes] for group in timeline.transactions]


def test_deletes_then_creates_are_one_and_a_delete_after_a_create_begins_the_next(tmp_path: Path) -> None:
    events = [(CREATE, 1), (CREATE, 2), (DELETE, 1), (DELETE, 2), (CREATE, 1), (CREATE, 2), (DELETE, 2), (CREATE, 3)]
    timeline = read(tmp_path, [(what, slot, 7, 1.0) for what, slot in events])
    assert lines_of(timeline) == [[1, 2], [3, 4, 5, 6], [7, 8]]
    group = timeline.transactions[1]
    assert [each.line for each in group.deletes] == [3, 4]
    assert [each.line for each in group.adds] == [5, 6]
    assert (group.first_line, group.last_line, group.start, group.end, group.thread) == (3, 6, 1.0, 1.0, 7)


def test_a_longer_pause_than_the_gap_ends_a_transaction(tmp_path: Path) -> None:
    events: list[tuple[str, int, int, float | None]] = [(CREATE, 1, 7, 1.0), (DELETE, 1, 7, 2.0), (CREATE, 1, 7, 2.006)]
    assert lines_of(read(tmp_path, events)) == [[1], [2], [3]]
    assert lines_of(read(tmp_path, events, gap=0.007)) == [[1], [2, 3]]


def test_without_times_order_alone_decides(tmp_path: Path) -> None:
    events = [(CREATE, 1), (DELETE, 1), (CREATE, 2), (CREATE, 3), (DELETE, 2)]
    assert lines_of(read(tmp_path, [(what, slot, 0, None) for what, slot in events])) == [[1], [2, 3, 4], [5]]


def test_another_thread_is_another_transaction(tmp_path: Path) -> None:
    events: list[tuple[str, int, int, float | None]] = [(CREATE, 1, 7, 1.0), (DELETE, 1, 7, 2.0), (CREATE, 1, 8, 2.0)]
    assert lines_of(read(tmp_path, events)) == [[1], [2], [3]]


def test_flag_changes_are_transactions_of_their_own(tmp_path: Path) -> None:
    events = [(CREATE, 1), (CREATE, 2), (FLAGS, 1), (FLAGS, 2), (DELETE, 1), (FLAGS, 2), (CREATE, 1)]
    timeline = read(tmp_path, [(what, slot, 7, 1.0) for what, slot in events])
    assert lines_of(timeline) == [[1, 2], [3, 4], [5], [6], [7]]


def test_a_change_of_nothing_ends_nothing(tmp_path: Path) -> None:
    events = [(CREATE, 1), (CREATE, 2), (DELETE, 1), (SAME, 2), (CREATE, 1)]
    assert lines_of(read(tmp_path, [(what, slot, 7, 1.0) for what, slot in events])) == [[1, 2], [3, 4, 5]]


def test_each_address_space_has_its_own_and_is_finished_before_the_next(tmp_path: Path) -> None:
    other = 1 << 16
    events = [(CREATE, 1), (CREATE, other), (DELETE, 1), (CREATE, 1), (DELETE, other), (CREATE, other)]
    timeline = read(tmp_path, [(what, slot, 7, 1.0) for what, slot in events])
    assert [(each.as_id, [one.line for one in each.changes]) for each in timeline.transactions] == [
        (0, [1]),
        (1, [2]),
        (0, [3, 4]),
        (1, [5, 6]),
    ]
    # A guest that switched its BAR off and on: the thread went on to the other address space, so the first was done.
    events = [(CREATE, 1), (CREATE, other), (DELETE, 1), (DELETE, other), (CREATE, 1), (CREATE, other)]
    timeline = read(tmp_path, [(what, slot, 7, 1.0) for what, slot in events])
    assert lines_of(timeline) == [[1], [2], [3], [4], [5], [6]]
    assert [each.separation.value for each in timeline.transactions] == ["first", "first", *["space"] * 4]
    # Another thread's change of the other address space says nothing about this one.
    timeline = read(tmp_path, [(what, slot, 8 if slot == other else 7, 1.0) for what, slot in events])
    assert lines_of(timeline) == [[1], [2], [3, 5], [4, 6]]


def naive(changes: list[RecordedChange], gap: float) -> dict[int, int]:
    """Line to first line of its transaction, by looking back from each change."""
    first: dict[int, int] = {}
    for i, each in enumerate(changes):
        earlier = [one for one in changes[:i] if one.change.as_id == each.change.as_id]
        first[each.line] = each.line
        if not earlier or earlier[-1].thread != each.thread or each.time is None or earlier[-1].time is None:
            continue
        group = [one for one in earlier if first[one.line] == first[earlier[-1].line]]
        word = "".join(one.kind.value[0] for one in [*group, each])  # c, d, f
        allowed = word.strip("f") == "" or word.lstrip("d").strip("c") == ""
        before = [one for one in changes[:i] if one.thread == each.thread]
        allowed = allowed and before[-1].change.as_id == each.change.as_id
        if allowed and each.time - earlier[-1].time <= gap:
            first[each.line] = first[earlier[-1].line]
    return first


@pytest.mark.parametrize("seed", range(30))
def test_grouping_agrees_with_looking_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    live: set[int] = set()
    events: list[tuple[str, int, int, float | None]] = []
    time = 1.0
    for _ in range(120):
        slot = rng.randrange(6) | rng.randrange(2) << 16
        what = rng.choice([DELETE, DELETE, FLAGS]) if slot in live else CREATE
        (live.discard if what == DELETE else live.add)(slot)
        time += rng.choice([0.0001, 0.001, 0.02])
        events.append((what, slot, rng.choice([7, 7, 7, 8]), time))
    timeline = read(tmp_path, events)
    got = {line: lines[0] for lines in lines_of(timeline) for line in lines}
    assert got == naive(list(timeline.changes), 0.005), f"seed {seed}"
    assert sorted(got) == list(range(1, 121))
    assert [each.index for each in timeline.transactions] == list(range(len(timeline.transactions)))


def test_a_move_follows_deletes_and_creates_but_not_what_made_its_slot(tmp_path: Path) -> None:
    def line(slot: int, page: int, pages: int = 1) -> str:
        return (
            f"7@1.000000:kvm_set_user_memory Slot#{slot} flags=0x0 gpa={page << 12:#x} size={pages << 12:#x} "
            f"ua={slot << 20:#x} ret=0\n"
        )

    path = tmp_path / "trace.log"
    path.write_text(
        line(1, 0) + line(2, 1) + line(1, 10) + line(3, 0) + line(1, 11) + line(4, 20) + line(2, 0, 0) + line(3, 1)
    )
    assert lines_of(traces.read(path)) == [[1, 2], [3, 4], [5, 6], [7, 8]]
