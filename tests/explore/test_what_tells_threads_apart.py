"""Threads are merged only if they can still do the same: by what a frame, and a monitor beside it, still know."""

from __future__ import annotations

import array
import decimal
import functools
import random
import re
from collections.abc import Callable, Iterable

import greenlet
import pytest

from guestmem.explore.continuation import Keys, reachable
from guestmem.explore.models import find
from guestmem.explore.monitors.descriptors import Ledger
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.plain_states import PlainStates
from guestmem.explore.scene import Model, Scene
from guestmem.explore.states import States
from guestmem.explore.stops import stops
from guestmem.explore.task import Task, machine, run
from guestmem.explore.world import World


def remembering(keep: Callable[[int], None], kept: Callable[[], int]) -> Model:
    """A thread that looks at a word, keeps what it saw somewhere, and judges it once the word is another."""

    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("w", 2)

        def looks() -> None:
            keep(atomics.load_acquire(words, 0))
            atomics.load_acquire(words, 1)
            assert not kept(), "it saw the other's store"

        def stores() -> None:
            atomics.store_release(words, 0, 1)
            atomics.store_release(words, 1, 1)
            atomics.store_release(words, 0, 0)

        scene.thread("looks", looks)
        scene.thread("stores", stores)

    return Model("remembering", "", "", build)


def searched(model: Model) -> Outcome:
    return run(Task(model, "states"), Budget(go_on=True))


def test_what_a_monitor_keeps_of_a_run() -> None:
    """As monitors do, in the greenlet that runs the thread: no frame has it."""

    def keep(value: int) -> None:
        vars(greenlet.getcurrent())["ledger"] = {value}

    def kept() -> int:
        return int(max(vars(greenlet.getcurrent())["ledger"]))

    outcome = searched(remembering(keep, kept))
    assert [finding.message.partition(" assert ")[0] for finding in outcome.findings] == ["it saw the other's store"]


@pytest.mark.parametrize("field", ["where", "last", "held", "unclean", "logged"])
def test_a_ledger_is_another_with_each_entry(field: str) -> None:
    ledger = object.__new__(Ledger)
    for name in ("where", "last", "held", "unclean"):
        setattr(ledger, name, {})
    for name in ("cached", "built", "dead", "given", "buffered", "fresh"):
        setattr(ledger, name, set())
    ledger.exclusive, ledger.logged = False, []
    before = ledger.key()
    if field == "logged":
        ledger.logged.append((1, 2))
    else:
        getattr(ledger, field)[1] = 2
    assert ledger.key() != before


def test_what_a_scene_reaches() -> None:
    """Through closures, containers and attributes; not through modules and classes, nor beyond what is beside it."""

    class Holder:
        shared = object()

    inner, beyond, here = object(), object(), Holder()
    beside = [beyond]
    here.list = [inner, beside, pytest, Holder]  # type: ignore[attr-defined]

    def closed() -> object:
        return here

    found = {id(each) for each in reachable([closed], [beside])}
    assert {id(inner), id(here), id(beside), id(pytest)} <= found
    assert not {id(beyond), id(Holder.shared), id(vars(pytest))} & found


def test_times_that_are_only_counted_tell_nothing_apart() -> None:
    """An engine counts how long its updates took: as many states as if no clock were there, again and again."""
    first, again = (run(Task(find("pause-batch"), "states"), Budget()) for _ in range(2))
    assert first.complete
    assert first.distinct == again.distinct < 25_000


def test_a_call_that_the_interpreter_has_specialized_is_the_same_place() -> None:
    """A frame that calls a builtin is in CPython 3.11, once that is specialized, stopped before the call itself."""
    main = greenlet.getcurrent()

    def stopped() -> int:
        return sum(main.switch() for _ in (1,))

    places = set()
    for _ in range(100):
        run = greenlet.greenlet(stopped)
        run.switch()
        frame = run.gr_frame.f_back
        places.add(stops(frame.f_code).get(frame.f_lasti))
        run.throw(greenlet.GreenletExit)
    assert None not in places
    assert len(places) == 1


@pytest.mark.parametrize(
    "gather", [tuple, list, sum, max, sorted, frozenset, ",".join, any, lambda each: next(each, 0)]
)
def test_what_a_builtin_has_gathered_of_a_generator_is_not_forgotten(
    gather: Callable[[Iterable[object]], object],
) -> None:
    """It lies in no frame: so nothing is merged there, but with builtins that keep nothing."""

    def build(scene: Scene) -> None:
        load = scene.room("atomics").load_relaxed
        words = scene.words("word", [0])

        def reader() -> object:
            seen = (int(load(words, 0)) for _ in range(3))
            return gather(map(str, seen) if gather == ",".join else seen)

        scene.thread("reader", reader)
        scene.thread("writer", lambda: scene.room("atomics").store_relaxed(words, 0, 1))

    model = Model("gathers", "", "", build)
    with World(model) as world:
        world.points.update(range(len(world.places)))
        its = machine(world, "sc")
        plain = PlainStates(its, Outcome("", "states", "sc")).run(Budget())
        merged = States(machine(world, "sc", merged=True), Outcome("", "states", "sc")).run(Budget())
    assert plain.complete
    assert merged.finals == plain.finals
    assert len(plain.finals) > 1


class Texts(str):
    """What it holds is a text's."""

    __slots__ = ()


class Numbers(array.array):  # type: ignore[type-arg]
    """What it holds is in C."""


@pytest.mark.parametrize(
    "one",
    [
        lambda number: array.array("Q", [number]),
        lambda number: Numbers("Q", [number]),
        lambda number: functools.partial(print, number),
        lambda number: re.compile(f"a{number}"),
        random.Random,
        lambda number: Texts(str(number)),
        decimal.Decimal,
    ],
)
def test_what_an_object_holds_in_c_tells_it_apart(one: Callable[[int], object]) -> None:
    keys = Keys((), type(None), lambda _: None)
    first, again, second = keys.value(one(1)), keys.value(one(1)), keys.value(one(2))
    assert first is None or first != second
    assert first == again
