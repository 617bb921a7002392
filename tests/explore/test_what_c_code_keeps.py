"""Threads that differ only in what C code keeps, while it calls back, are never taken for one.

``sorted`` has what its key function returned, ``zip`` what its first iterator yielded, a class the new object, in no
frame. Each case: as many ends as without merging; and where nothing is kept, fewer nodes than histories.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.plain_states import PlainStates
from guestmem.explore.scene import Model, Scene
from guestmem.explore.states import States
from guestmem.explore.stops import stops
from guestmem.explore.task import machine
from guestmem.explore.world import World

Load = Callable[[], int]


def searched(body: Callable[..., object], *arguments: Callable[[Load], object]) -> tuple[Outcome, Outcome, int]:
    """The search over histories, that over merged threads, and how many keys the latter could not make."""

    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("word", [0])

        def load() -> int:
            return int(atomics.load_relaxed(words, 0))

        def store() -> None:
            atomics.store_relaxed(words, 0, 1)
            atomics.store_relaxed(words, 0, 0)

        if arguments:
            scene.thread("reader", body, *(each(load) for each in arguments))
        else:
            scene.thread("reader", lambda: body(load))
        scene.thread("writer", store)

    with World(Model("keeps", "", "", build)) as world:
        world.points.update(range(len(world.places)))
        plain = PlainStates(machine(world, "sc"), Outcome("", "states", "sc")).run(Budget())
        merged = States(machine(world, "sc", merged=True), Outcome("", "states", "sc")).run(Budget())
        return plain, merged, sum(world.keys.unknown.values())


def numbers(load: Load, count: int = 2) -> Iterator[int]:
    for _ in range(count):
        yield load()


class Object:
    def __init__(self, load: Load) -> None:
        self.seen = load()
        load()


class Sum(int):
    load: Load

    def __add__(self, other: object) -> Any:
        self.load()
        return NotImplemented

    def __eq__(self, other: object) -> bool:
        return self.load() == 1

    __hash__ = None  # type: ignore[assignment]


class Right:
    def __init__(self, number: int) -> None:
        self.number = number

    def __radd__(self, other: object) -> int:
        return self.number


def of_operator(load: Load) -> object:
    left = Sum(1)
    left.load = load
    return left + Right(load())


def of_lookup(load: Load) -> object:
    each = Sum(1), Sum(1), Sum(2)
    for one in each:
        one.load = load
    return 5 in each, 6 in each


def of_filter(load: Load) -> object:
    def asked(_value: int) -> bool:
        load()
        return True

    return [value for value in filter(asked, numbers(load))]  # noqa: C416 - a loop over a filter


def of_list(load: Load) -> object:
    found: list[int] = []
    found += (load() for _ in range(3))
    return found


def all_of(*each: object) -> object:
    return each


def by(key: Callable[[int], int]) -> dict[str, Any]:
    return {"key": key}


def handing_on(*each: Any) -> object:
    def looking(load: Load, more: int) -> object:
        return more, load(), load()

    return looking(*each)


def of_itself(load: Load) -> object:
    def each(*values: object) -> object:
        return values, load()

    return each(*map(each, range(3)))


KEEPS: list[Callable[[Load], object]] = [
    lambda load: sorted([1, 2], key=lambda value: -value * load()),
    lambda load: max([1, 2, 3], key=lambda _: load()),
    lambda load: list(map(lambda _: load(), range(3))),  # noqa: C417
    lambda load: all_of(*map(lambda _: load(), range(3))),  # noqa: C417
    lambda load: all_of(*(load() for _ in range(3))),
    lambda load: [pair for pair in zip(numbers(load), numbers(load), strict=True)],  # noqa: C416
    lambda load: functools.reduce(lambda before, _: before * 2 + load(), range(3), 0),
    lambda load: functools.lru_cache(lambda value: (value, load(), load()))(load()),
    lambda load: Object(load).seen,
    lambda load: dict((k, load()) for k in range(3)),  # noqa: C402
    lambda load: sorted(*([1, 2],), **by(lambda value: -value * load())),
    lambda load: [x for x in map(lambda a, b: (a, b), numbers(load), numbers(load))],  # noqa: C416
    of_itself,
    of_filter,
    of_list,
    of_operator,
    of_lookup,
]


@pytest.mark.parametrize("body", KEEPS)
def test_what_is_kept_tells_threads_apart(body: Callable[[Load], object]) -> None:
    plain, merged, unknown = searched(body)
    assert plain.complete
    assert merged.finals == plain.finals
    assert len(plain.finals) > 1
    assert unknown


def of_a_property(load: Load) -> object:
    class Has:
        found = 0

        @property
        def both(self) -> int:
            return 2 * load() + load()

        @both.setter
        def both(self, value: int) -> None:
            self.found = value + load()

        def __getitem__(self, _index: int) -> int:
            return 2 * load() + load()

    has = Has()
    has.both = has.both + has[0]
    return has.found


@contextmanager
def looks(load: Load) -> Iterator[int]:
    yield load()
    load()


def of_a_context(load: Load) -> object:
    with looks(load) as seen, ExitStack() as stack:
        also = stack.enter_context(looks(load))
    return seen, also


def of_star(load: Load, *more: int) -> object:
    def both(*each: int, **names: int) -> object:
        return each, names, load(), load()

    return both(*more, load()), both(1, *more, last=load())


PASSES_ON: list[Callable[[Load], object]] = [
    lambda load: [3 * a + b for a, b in ((load(), load()) for _ in range(2))],
    lambda load: [x for x in (2 * load() + load() for _ in range(2))],  # noqa: C416 - two values on its stack
    lambda load: [x for x in map(lambda _: load(), range(3))],  # noqa: C416, C417
    lambda load: [x for x in map(str, numbers(load))],  # noqa: C416
    lambda load: [x for x in enumerate(numbers(load))],  # noqa: C416
    lambda load: (any(numbers(load)), next(numbers(load))),
    lambda load: functools.partial(lambda value: (value, load(), load()), load())(),
    lambda load: handing_on(load, 1),
    of_a_property,
    of_a_context,
    of_star,
]


@pytest.mark.parametrize("body", PASSES_ON)
def test_what_keeps_nothing_is_merged(body: Callable[[Load], object]) -> None:
    plain, merged, unknown = searched(body)
    assert plain.complete
    assert merged.finals == plain.finals
    assert len(plain.finals) > 1
    assert not unknown
    assert merged.distinct <= plain.distinct


class Source:
    def __init__(self, load: Load) -> None:
        self.load = load

    def __iter__(self) -> Iterator[int]:
        return numbers(self.load, 3)


def test_a_thread_whose_body_is_a_builtin() -> None:
    """Nobody sees what it has gathered."""
    plain, merged, _ = searched(tuple, Source)
    assert merged.finals == plain.finals
    assert len(plain.finals) > 1


def test_what_a_loop_in_a_generator_has_on_its_stack() -> None:
    """CPython 3.11 says of the instruction that makes a generator that it leaves nothing, and is one off from there."""
    assert {stop.stack for stop in stops(numbers.__code__).values() if stop.by == "YIELD_VALUE"} == {1}
