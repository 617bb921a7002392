"""The holes found are those that a dictionary with one entry for each page finds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.check import check
from guestmem.memslots.changes import ChangeKind

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.check import Hole
    from guestmem.traces import Transaction

PAGES, IDS, HOST = 24, 6, 40


def random_trace(rng: random.Random, length: int) -> str:
    """strace lines of deletes, creates and moves that KVM would take, in bursts, on few pages."""
    slots: dict[int, tuple[int, int, int]] = {}
    lines: list[str] = []
    time = 1.0

    def free(base: int, npages: int, but: int) -> bool:
        return all(
            base + npages <= start or start + count <= base for i, (start, count, _) in slots.items() if i != but
        )

    while len(lines) < length:
        time += rng.choice([0.0001, 0.0001, 0.0001, 0.1])
        i = rng.randrange(IDS)
        base, npages, host = rng.randrange(PAGES), rng.randrange(1, 8), rng.randrange(HOST)
        if i in slots and rng.random() < 0.7:
            base, _, host = slots.pop(i)
            npages = 0
        elif i in slots:
            _, npages, host = slots[i]
        elif rng.random() < 0.5:  # the host memory of a page is often what it was
            host = base
        if npages:
            if not free(base, npages, i):
                continue
            slots[i] = (base, npages, host)
        lines.append(
            f"5 {time:.6f} ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={i}, flags=0, guest_phys_addr={base << 12:#x}, "
            f"memory_size={npages << 12}, userspace_addr={host << 12:#x}}}) = 0\n"
        )
    return "".join(lines)


def holes_by_page(pages: dict[int, int], group: Transaction) -> set[tuple[int, int, int, bool]]:
    """(page, line that took it, line that gave it back, same host page); ``pages`` is brought up to date."""
    before = dict(pages)
    taken: dict[int, tuple[int, int]] = {}
    found = []
    for each in group.changes:
        slot = each.old
        if each.kind in (ChangeKind.DELETE, ChangeKind.MOVE) and slot is not None:
            for page in range(slot.base_gfn, slot.base_gfn + slot.npages):
                taken[page] = (each.line, pages.pop(page))
        if each.kind in (ChangeKind.CREATE, ChangeKind.MOVE):
            for i in range(each.change.npages):
                page, host = each.change.base_gfn + i, (each.change.userspace_addr >> 12) + i
                pages[page] = host
                if page in taken:
                    line, old = taken.pop(page)
                    found.append((page, line, each.line, old == host))
    return {each for each in found if each[0] in before and each[0] in pages}


def pages_of(hole: Hole | None) -> set[tuple[int, int, int, bool]]:
    if hole is None:
        return set()
    listed = [
        (page, each.removed.line, each.restored.line, each.same_host_memory)
        for each in hole.ranges
        for page in range(each.start_gfn, each.end_gfn)
    ]
    assert len(listed) == len(set(listed)), "a page is listed twice"
    return set(listed)


@pytest.mark.parametrize("seed", range(150))
def test_holes_are_those_of_a_dict_per_page(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "strace.txt"
    path.write_text(random_trace(random.Random(seed), 300))
    timeline = traces.read(path)
    report = check(timeline)
    by_transaction = {hole.transaction: hole for hole in report.holes}
    pages: dict[int, int] = {}
    found = 0
    for group in timeline.transactions:
        expected = holes_by_page(pages, group)
        hole = by_transaction.get(group.index)
        assert pages_of(hole) == expected, f"seed {seed}, transaction {group.index}"
        if hole is None:
            continue
        found += 1
        frames = {page for page, _, _, _ in expected}
        assert {page for start, end in hole.frames for page in range(start, end)} == frames, f"seed {seed}"
        assert hole.npages == len(frames), f"seed {seed}"
        assert all(a[1] < b[0] for a, b in zip(hole.frames, hole.frames[1:], strict=False)), f"seed {seed}: not merged"
        assert hole.first_line == min(line for _, line, _, _ in expected), f"seed {seed}"
        assert hole.last_line == max(line for _, _, line, _ in expected), f"seed {seed}"
        answers = {same for _, _, _, same in expected}
        assert hole.same_host_memory == (answers.pop() if len(answers) == 1 else None), f"seed {seed}"
        check_sets(hole, expected, seed)
    assert found > 5, f"seed {seed}: hardly a hole to look at"


def check_sets(hole: Hole, expected: set[tuple[int, int, int, bool]], seed: int) -> None:
    """The sets are disjoint, hold every change that took what another gave back, and none could be split."""
    sets = [set(each.lines) for each in hole.atomic_sets]
    assert sum(map(len, sets)) == len(set().union(*sets)), f"seed {seed}: a change is in two sets"
    neighbours: dict[int, set[int]] = {}
    for _, removed, restored, _ in expected:
        neighbours.setdefault(removed, set()).add(restored)
        neighbours.setdefault(restored, set()).add(removed)
    assert set().union(*sets) == set(neighbours), f"seed {seed}"
    for lines in sets:
        reached, todo = set(), [min(lines)]
        while todo:
            line = todo.pop()
            if line not in reached:
                reached.add(line)
                todo.extend(neighbours[line])
        assert reached == lines, f"seed {seed}: {sorted(lines)} is not one connected set"
