"""Small random programs for the explorer, and its naive oracle: every schedule, one after the other."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from guestmem.explore.judge import Judge
from guestmem.explore.machine import Machine
from guestmem.explore.scene import Model, Scene

Step = tuple[str, int, int]
KINDS = ("lsac", "lsacwk", "lwwkks", "lsXa", "XXls", "XXXal", "wkTa", "wkX", "TTkX", "rfl", "rsfl", "XXLl")


def program(rng: random.Random, kinds: str = "", *, threads: int = 0, longest: int = 4) -> list[list[Step]]:
    """Threads of random steps: (kind, word, number)."""
    kinds = kinds or rng.choice(KINDS)
    threads = threads or rng.choice((2, 2, 3))
    size = rng.choice((1, 2, 3))
    return [
        [(rng.choice(kinds), rng.randrange(size), rng.randrange(2)) for _ in range(rng.randrange(1, longest + 1))]
        for _ in range(threads)
    ]


def model(threads: list[list[Step]], *, forgetful: bool = False, **options: Any) -> Model:
    """A model that runs a program. Capital X: a critical section, of two locks if its number is 1; L: look at a lock.

    Threads return all that they saw, so that ends tell histories apart; ``forgetful`` ones keep the last of it, and go
    other ways by it.
    """

    def build(scene: Scene) -> None:
        atomics = scene.room("atomics")
        words, locks = scene.words("word", 3), scene.words("lock", 2)

        def section(index: int, both: int) -> None:
            held = [index % 2, 1 - index % 2][: 1 + both]
            for lock in held:
                scene.lock(locks, lock)
            atomics.store_release(words, index, atomics.load_acquire(words, index) + 1)
            for lock in reversed(held):
                scene.unlock(locks, lock)

        actions: dict[str, Callable[[int, int], object]] = {
            "l": lambda i, _v: atomics.load_acquire(words, i),
            "s": lambda i, v: atomics.store_release(words, i, v + 1),
            "r": lambda i, v: atomics.store_relaxed(words, i, v + 1),
            "a": lambda i, _v: atomics.fetch_add(words, i, 1),
            "c": lambda i, v: atomics.compare_exchange(words, i, v, v + 5),
            "w": lambda i, v: atomics.wait(words, i, v),
            "T": lambda i, v: atomics.wait_for(words, i, v, 100),
            "k": lambda i, v: atomics.wake(words, i, 1 + 100 * v),
            "f": lambda _i, _v: atomics.fence(),
            "X": section,
            "L": lambda i, _v: atomics.load_relaxed(locks, i % 2),
        }

        def body(steps: list[Step]) -> object:
            return tuple([actions[kind](index, number) for kind, index, number in steps])

        def forgets(steps: list[Step]) -> object:
            last: Any = 0
            for kind, index, number in steps:
                if not last or number:
                    seen: Any = actions[kind](index, number)
                    last = (last or 0) & 1 | (seen or 0)
            return last

        for number, steps in enumerate(threads):
            scene.thread(f"thread {number}", forgets if forgetful else body, steps)

    return Model("random", "nothing", "small", build, **options)


def every_end(machine: Machine, most: int = 20_000) -> set[int] | None:
    """All ends, by walking every schedule; None if there are more than ``most``."""
    judge = Judge(machine)
    ends: set[int] = set()
    work = [machine.start()]
    walked = 0
    while work:
        state = work.pop()
        moves = machine.moves(state)
        walked += 1
        if walked > most:
            return None
        if not moves:
            ends.add(judge.end(state))
        work += [machine.move(state, move) for move in moves]
    return ends
