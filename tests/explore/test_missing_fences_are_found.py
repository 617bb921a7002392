"""Weak memory: a full fence left out is found where sequential memory sees nothing; litmus tests end as documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guestmem.explore import Mutation
from guestmem.explore.models import find
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.scene import Model, Scene
from guestmem.explore.search import explore
from guestmem.explore.states import States
from guestmem.explore.task import machine
from guestmem.explore.world import Reshaped, World

SRCU, REQUESTS, VCPU = "rcu/srcu.py", "engines/soft/requests.py", "engines/soft/vcpu.py"
FENCES = {
    "srcu: enter, then the section's loads": (
        "srcu",
        Mutation(SRCU, "reader, epoch)\n    fence()", "reader, epoch)"),
        "assertion",
    ),
    "srcu: exit, then a look for waiters": (
        "srcu",
        Mutation(SRCU, "reader, u64(0))\n    fence()", "reader, u64(0))"),
        "deadlock",
    ),
    "mode, then a look for requests: a pause": (
        "pause",
        Mutation(VCPU, "at.MODE, at.IN_GUEST)\n        fence()", "at.MODE, at.IN_GUEST)\n        "),
        "assertion",
    ),
    "mode, then a look for requests: a flush against a fill": (
        "flush",
        Mutation(VCPU, "at.MODE, at.IN_GUEST)\n        fence()", "at.MODE, at.IN_GUEST)\n        "),
        "assertion",
    ),
    "an acknowledgement, then a look for who waits": (
        "flush",
        Mutation(REQUESTS, "    fence()\n    if load_relaxed(vm, WAITING)", "    if load_relaxed(vm, WAITING)"),
        "deadlock",
    ),
}


@pytest.mark.parametrize("name", FENCES)
def test_a_fence_left_out_is_found_by_weak_memory_only(name: str) -> None:
    model, mutation, kind = FENCES[name]
    report = explore(find(model), mutations=[mutation], shrink_s=250)
    assert [found.finding.kind for found in report.counterexamples] == [kind]
    for outcome in report.outcomes:
        assert bool(outcome.findings) == (outcome.memory != "sc"), outcome
    assert report.counterexamples[0].finding.minimal


def litmus(*threads: Callable[[Any, Any, list[int]], None]) -> Model:
    """Threads ``f(atomics, words, seen)``; what they saw is their result."""

    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("w", 3)

        def run(body: Callable[[Any, Any, list[int]], None]) -> tuple[int, ...]:
            seen: list[int] = []
            body(atomics, words, seen)
            return tuple(seen)

        for number, body in enumerate(threads):
            scene.thread(f"t{number}", run, body)

    return Model("litmus", "", "", build)


def results(model: Model, memory: str) -> set[tuple[int, ...]]:
    """All that the threads together can have seen."""
    with World(model) as world:
        while True:
            try:
                its = machine(world, memory)
                search = States(its, Outcome("", "states", memory))
                search.run(Budget(go_on=True))
                break
            except Reshaped:
                continue
        ends = [state for state in map(search.state, range(search.count)) if not its.moves(state)]
        return {tuple(value for node in its.nodes(state) for value in node.outcome) for state in ends}


def store_then_load(fenced: bool, mine: int) -> Callable[[Any, Any, list[int]], None]:
    def body(atomics: Any, words: Any, seen: list[int]) -> None:
        atomics.store_release(words, mine, 1)
        if fenced:
            atomics.fence()
        seen.append(atomics.load_acquire(words, 1 - mine))

    return body


def add_then_load(mine: int) -> Callable[[Any, Any, list[int]], None]:
    def body(atomics: Any, words: Any, seen: list[int]) -> None:
        atomics.fetch_add(words, mine, 1)
        seen.append(atomics.load_acquire(words, 1 - mine))

    return body


def message(store: str) -> Callable[[Any, Any, list[int]], None]:
    def body(atomics: Any, words: Any, seen: list[int]) -> None:
        del seen
        atomics.store_relaxed(words, 0, 1)
        getattr(atomics, store)(words, 1, 1)

    return body


def receive(load: str) -> Callable[[Any, Any, list[int]], None]:
    def body(atomics: Any, words: Any, seen: list[int]) -> None:
        seen += (getattr(atomics, load)(words, 1), atomics.load_relaxed(words, 0))

    return body


def look(atomics: Any, words: Any, seen: list[int]) -> None:
    seen += (atomics.load_relaxed(words, 0), atomics.load_relaxed(words, 0))


def write(atomics: Any, words: Any, seen: list[int]) -> None:
    del seen
    atomics.store_relaxed(words, 0, 1)
    atomics.store_relaxed(words, 0, 2)


@pytest.mark.parametrize(
    ("threads", "forbidden", "allowed_by"),
    [
        ((store_then_load(False, 0), store_then_load(False, 1)), (0, 0), {"tso", "relaxed", "stale"}),
        ((store_then_load(True, 0), store_then_load(True, 1)), (0, 0), set()),
        ((add_then_load(0), add_then_load(1)), (0, 0), {"stale"}),
        ((message("store_release"), receive("load_acquire")), (1, 0), set()),
        ((message("store_relaxed"), receive("load_acquire")), (1, 0), {"relaxed", "stale"}),
        ((message("store_release"), receive("load_relaxed")), (1, 0), {"stale"}),
        ((write, look), (2, 1), set()),
    ],
    ids=["SB", "SB+fences", "SB+rmw", "MP", "MP+relaxed store", "MP+relaxed load", "CoRR"],
)
def test_litmus(threads: tuple[Any, ...], forbidden: tuple[int, ...], allowed_by: set[str]) -> None:
    model = litmus(*threads)
    for memory in ("sc", "tso", "relaxed", "stale"):
        assert (forbidden in results(model, memory)) == (memory in allowed_by), memory
