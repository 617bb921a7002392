"""A dirty ring is a queue: pushed, harvested and reset in order; runs cover exactly what was given back."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from guestmem import InvariantError, MemslotError, UsageError
from guestmem.atomics import poke
from guestmem.dirty import DirtyEntry, DirtyRing
from guestmem.dirty.ring import ring_size


def covered(runs: list[object]) -> set[tuple[int, int, int]]:
    return {
        (run.as_id, run.slot, run.offset + bit)  # type: ignore[attr-defined] # Runs
        for run in runs
        for bit in range(64)
        if run.mask >> bit & 1  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("near", [4, 200, 1 << 40])
def test_random_work(near: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    ring = DirtyRing(64, reserved=8)
    dirty: deque[DirtyEntry] = deque()
    harvested: deque[DirtyEntry] = deque()
    for _ in range(sized(800, 150)):
        action = rng.randrange(10)
        if action < 7 and len(dirty) + len(harvested) < 64:
            entry = DirtyEntry(rng.randrange(3), rng.randrange(near), rng.randrange(2))
            dirty.append(entry)
            assert ring.push(*entry) is (len(dirty) + len(harvested) >= 56)
        elif action < 9:
            assert ring.harvest() == list(dirty)
            harvested += dirty
            dirty.clear()
        else:
            count, runs = ring.reset()
            assert count == len(harvested)
            assert covered(list(runs)) == {(entry.as_id, entry.slot, entry.offset) for entry in harvested}
            assert len(runs) <= max(len(harvested), 0)
            harvested.clear()
        assert ring.used == len(dirty) + len(harvested)
        assert ring.soft_full is (ring.used >= 56)
        ring.check()


def test_neighbours_become_one_run_in_both_directions() -> None:
    for order in (range(64), range(63, -1, -1)):
        ring = DirtyRing(128)
        for page in order:
            ring.push(5, 1000 + page)
        ring.harvest()
        count, runs = ring.reset()
        assert (count, [(run.offset, run.mask) for run in runs]) == (64, [(1000, (1 << 64) - 1)])


def test_a_run_ends_where_64_pages_do() -> None:
    ring = DirtyRing(128)
    for page in (0, 63, 64, 10):
        ring.push(5, page)
    ring.harvest()
    _, runs = ring.reset()
    assert [(run.offset, run.mask) for run in runs] == [(0, 1 | 1 << 63), (10, 1 | 1 << 54)]


def test_a_reset_stops_at_the_first_that_is_not_harvested() -> None:
    ring = DirtyRing(128)
    ring.push(1, 1)
    ring.harvest()
    ring.push(1, 2)
    assert ring.reset()[0] == 1
    assert ring.reset()[0] == 0
    assert ring.used == 1


def test_hard_full_and_broken_rings_are_found() -> None:
    ring = DirtyRing(4, reserved=1)
    for page in range(4):
        ring.push(0, page)
    with pytest.raises(InvariantError, match="hard full"):
        ring.push(0, 4)
    poke(ring.words, 16 + 2 * 1, 3)  # entry 1 harvested before entry 0
    with pytest.raises(InvariantError, match="follows one that is not"):
        ring.check()
    ring = DirtyRing(4, reserved=1)
    poke(ring.words, 16, 1)
    with pytest.raises(InvariantError, match="beyond the vCPU's index"):
        ring.check()


@pytest.mark.parametrize("nbytes", [0, 3, 2048, 5000, 1 << 21])
def test_sizes(nbytes: int) -> None:
    with pytest.raises(MemslotError):
        ring_size(nbytes)
    with pytest.raises(UsageError):
        DirtyRing(nbytes * 2 + 3)


@pytest.mark.parametrize(
    "entry", [(-1, 0, 0), (1 << 16, 0, 0), (0, -1, 0), (0, 1 << 64, 0), (0, 0, -1), (0, 0, 1 << 16)]
)
def test_entries_that_fit_no_ring(entry: tuple[int, int, int]) -> None:
    ring = DirtyRing(128)
    with pytest.raises(UsageError, match="entry: slot"):
        ring.push(*entry)
    assert ring.used == 0
    for size in (0, -1, 3, 1 << 17, 1 << 64):
        with pytest.raises(UsageError, match="size"):
            DirtyRing(size)
