"""At every point where a reader and an updater can cut into each other, the grace period holds; mutants are caught.

A scheduler of a few lines carries out the interpreted form's operations and, at a chosen one, lets the other side run
all of its part first. That is not every schedule (the explorer's job), but each single cut, for certain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guestmem import explore
from guestmem.errors import InvariantError
from guestmem.explore import Twin

POINTER, FIRST, SECOND = 0, 1, 2


class Cut:
    """Carries out operations; before the ``point``-th, ``other`` runs from start to end."""

    def __init__(self, point: int, other: Callable[[], None]) -> None:
        self.point, self.other = point, other
        self.steps = 0

    def step(self, operation: str, words: Any, index: int, first: int, second: int) -> int:
        self.steps += 1
        if self.steps - 1 == self.point:
            self.other()
        if operation in {"fence", "wake"}:
            return 0
        assert operation != "wait", "nobody would end this wait"
        seen: int = words.cells[index]
        if operation.startswith("store"):
            words.cells[index] = first
        elif operation == "fetch_add":
            words.cells[index] = (seen + first) % 2**64
        else:
            assert operation.startswith("load"), operation
        return seen


class Scene:
    """A reader that enters and takes the pointer; an updater that replaces it and asks whether the old may go."""

    def __init__(self, twin: Twin) -> None:
        self.atomics, self.srcu = twin.room("atomics"), twin.room("rcu.srcu")
        deferred = twin.room("rcu.deferred")
        self.domain = self.srcu.Srcu(2)
        self.queue = deferred.Deferred(self.domain, 4)
        self.shared = twin.room("compiled").words(8)
        self.shared.cells[POINTER] = FIRST
        self.holds = 0
        self.freed: list[int] = []

    def enter(self) -> None:
        self.srcu.srcu_enter(self.domain.words, 0, 1)
        self.holds = self.atomics.load_acquire(self.shared, POINTER)

    def exit(self) -> None:
        self.srcu.srcu_exit(self.domain.words, 0, 1)
        self.holds = 0

    def update(self) -> None:
        self.atomics.store_release(self.shared, POINTER, SECOND)
        assert self.queue.defer(FIRST)
        self.freed += self.queue.reclaim()

    def sound(self) -> bool:
        """Whether nothing that the reader holds was freed, and nothing was lost, even in the end."""
        held_back = self.holds not in self.freed
        self.freed += self.queue.reclaim()
        held_back = held_back and self.holds not in self.freed
        if self.holds:
            self.exit()
        self.freed += self.queue.drain()
        self.queue.check()
        return held_back and self.freed == [FIRST]


def cuts(twin: Twin, first: str, other: str, before: str = "") -> list[bool]:
    """Soundness of ``first`` cut by ``other`` at each of its steps."""
    outcomes: list[bool] = []
    for point in range(1000):
        scene = Scene(twin)
        if before:
            getattr(scene, before)()
        scheduler = Cut(point, getattr(scene, other))
        with scene.atomics.schedule(scheduler):
            getattr(scene, first)()
        if scheduler.steps <= point:
            return outcomes
        outcomes.append(scene.sound())
    raise AssertionError("the schedule does not end")


SCHEDULES = [("update", "enter", ""), ("enter", "update", ""), ("update", "exit", "enter"), ("exit", "update", "enter")]


@pytest.mark.parametrize(("first", "other", "before"), SCHEDULES)
def test_every_cut_is_sound(first: str, other: str, before: str) -> None:
    with explore.load() as twin:
        outcomes = cuts(twin, first, other, before)
    assert len(outcomes) > 2
    assert all(outcomes), outcomes


LOOK = "{place}reader)\n        if epoch != 0 and epoch < oldest"
MUTANTS = {
    "a grace period that starts no epoch": (
        "rcu/srcu.py",
        "epoch = fetch_add(srcu, base, ONE) + ONE",
        "epoch = load_relaxed(srcu, base)",
    ),
    "a reader that does not say it is inside": (
        "rcu/srcu.py",
        "store_release(srcu, base + _READERS + _LINE * reader, epoch)",
        "pass",
    ),
    "a reader that is looked for in another's place": (
        "rcu/srcu.py",
        LOOK.format(place="_LINE * "),
        LOOK.format(place=""),
    ),
    "an item handed back without a look at the readers": ("rcu/deferred.py", "if cookie > oldest:", "if False:"),
    "an item that is never handed back": ("rcu/deferred.py", "if cookie > oldest:", "if True:"),
    "an item that is handed back twice": (
        "rcu/deferred.py",
        "        taken += ONE\n    store_relaxed",
        "    store_relaxed",
    ),
    "another item handed back": ("rcu/deferred.py", "freed[count] = item", "freed[count] = cookie + ONE"),
}


def sound(twin: Twin, first: str, other: str, before: str) -> bool:
    """As ``all(cuts(...))``; False also if a check fails or an index leaves its words."""
    try:
        return all(cuts(twin, first, other, before))
    except (InvariantError, IndexError):
        return False


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    with explore.load([MUTANTS[name]]) as mutant:
        assert not all(sound(mutant, *schedule) for schedule in SCHEDULES)


def test_the_original_is_not_caught() -> None:
    with explore.load() as twin:
        assert all(sound(twin, *schedule) for schedule in SCHEDULES)
