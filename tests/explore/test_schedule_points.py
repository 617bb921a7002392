"""Every atomic operation of the interpreted form is one schedule point, with the arguments that atomics documents."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import guestmem.atomics
from guestmem import explore
from guestmem.explore import Twin

FOR_EVER = 2**64 - 1
STEPS = {
    "load_relaxed": ((5,), ("load_relaxed", 5, 0, 0)),
    "load_acquire": ((5,), ("load_acquire", 5, 0, 0)),
    "store_relaxed": ((5, 7), ("store_relaxed", 5, 7, 0)),
    "store_release": ((5, 7), ("store_release", 5, 7, 0)),
    "compare_exchange": ((5, 7, 9), ("compare_exchange", 5, 7, 9)),
    "exchange": ((5, 7), ("exchange", 5, 7, 0)),
    "fetch_add": ((5, 7), ("fetch_add", 5, 7, 0)),
    "fetch_and": ((5, 7), ("fetch_and", 5, 7, 0)),
    "fetch_or": ((5, 7), ("fetch_or", 5, 7, 0)),
    "wait": ((5, 7), ("wait", 5, 7, FOR_EVER)),
    "wait_for": ((5, 7, 1000), ("wait", 5, 7, 1000)),
    "wake": ((5, 7), ("wake", 5, 7, 0)),
    "peek": ((5,), ("load_acquire", 5, 0, 0)),
    "poke": ((5, 7), ("store_release", 5, 7, 0)),
    "wake_all": ((5,), ("wake", 5, 0x7FFFFFFF, 0)),
    "fence": ((), ("fence", 0, 0, 0)),
    "host_load": ((4096,), ("host_load", 4096, 0, 0)),
    "host_store": ((4096, 7), ("host_store", 4096, 7, 0)),
    "host_fetch_add": ((4096, 7), ("host_fetch_add", 4096, 7, 0)),
    "host_fetch_or": ((4096, 7), ("host_fetch_or", 4096, 7, 0)),
}
RETURNS_NOTHING = {
    "store_relaxed",
    "store_release",
    "wait",
    "wait_for",
    "wake",
    "poke",
    "wake_all",
    "fence",
    "host_store",
}
NO_STEP = {"Scheduler", "schedule", "address_of"}


class Recorder:
    """Answers every step with the same word and keeps what it was asked."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.steps: list[tuple[str, Any, int, int, int]] = []

    def step(self, operation: str, words: Any, index: int, first: int, second: int) -> int:
        self.steps.append((operation, words, index, first, second))
        return self.answer


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with explore.load() as twin:
        yield twin


@pytest.mark.parametrize("name", STEPS)
def test_an_operation_is_one_step(name: str, twin: Twin) -> None:
    atomics, recorder = twin.room("atomics"), Recorder(answer=77)
    shared = twin.room("compiled").words(8)
    arguments, (operation, *expected) = STEPS[name]
    on_words = not name.startswith("host") and name != "fence"
    with atomics.schedule(recorder):
        result = getattr(atomics, name)(*([shared] if on_words else []), *arguments)
    assert recorder.steps == [(operation, shared if on_words else None, *expected)]
    assert result == (None if name in RETURNS_NOTHING else 77)
    assert set(shared.cells) == {0}, "the scheduler carries the operation out, nobody else"


def test_no_operation_is_left_out() -> None:
    assert set(STEPS) | NO_STEP == set(guestmem.atomics.__all__)


def test_an_address_is_no_step(twin: Twin) -> None:
    atomics, recorder = twin.room("atomics"), Recorder()
    with atomics.schedule(recorder):
        atomics.address_of(twin.room("compiled").words(8), 3)
    assert recorder.steps == []


def test_without_a_scheduler_operations_are_carried_out(twin: Twin) -> None:
    atomics, recorder = twin.room("atomics"), Recorder()
    shared = twin.room("compiled").words(8)
    with atomics.schedule(recorder):
        pass
    atomics.store_release(shared, 1, 5)
    assert (recorder.steps, shared.cells[1]) == ([], 5)


def test_the_scheduler_before_comes_back(twin: Twin) -> None:
    atomics, outer, inner = twin.room("atomics"), Recorder(), Recorder()
    with atomics.schedule(outer):
        with pytest.raises(RuntimeError), atomics.schedule(inner):
            raise RuntimeError
        atomics.fence()
    assert (len(outer.steps), len(inner.steps)) == (1, 0)


def test_a_scheduler_of_one_twin_is_not_that_of_another(twin: Twin) -> None:
    recorder = Recorder()
    with explore.load() as other, twin.room("atomics").schedule(recorder):
        other.room("atomics").fence()
    assert recorder.steps == []


@pytest.mark.compiled_only
def test_compiled_atomics_cannot_be_scheduled() -> None:
    with pytest.raises(RuntimeError, match=r"explore\.load"), guestmem.atomics.schedule(Recorder()):
        pass


def test_interpreted_operations_touch_words_only_past_the_scheduler() -> None:
    """In the source: each function asks for the scheduler before it does anything else."""
    tree = ast.parse(inspect.getsource(guestmem.atomics))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in STEPS]
    for function in functions:
        checks = 1 if ast.unparse(function.body[1]).startswith("if index < 0") else 0
        first = ast.unparse(function.body[1 + checks])
        compiled = any("compiled" in ast.unparse(decorator) for decorator in function.decorator_list)
        assert compiled or first.startswith(("if _scheduler is not None", "wait_for(")), function.name
