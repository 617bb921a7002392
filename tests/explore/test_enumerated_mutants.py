"""The campaign over enumerated mutants finds those of SRCU that its models notice, and says why of the others."""

from __future__ import annotations

import pytest

from enumerated_mutants import KINDS, callers, enumerated, trial
from guestmem.explore.coverage import trace
from guestmem.explore.models import find

FUNCTIONS = {("rcu/srcu.py", name): ["srcu"] for name in ("srcu_enter", "srcu_start", "srcu_exit")}


def test_an_order_that_is_weakened_has_the_name_of_what_it_becomes() -> None:
    functions = {("engines/soft/cores.py", "take_core"): ["cores-2"]}
    ((kind, mutant),) = enumerated(functions, ["orders"])
    verdict = trial(600.0, (kind, mutant), lambda: False)
    assert not verdict.why.startswith("no mutant"), verdict.why


def test_functions_are_those_that_models_call() -> None:
    called = callers([trace(find("srcu"), states=200)])
    assert set(FUNCTIONS) <= set(called)
    assert set(map(tuple, called.values())) == {("srcu",)}


def test_every_place_is_there_once() -> None:
    every = list(enumerated(FUNCTIONS, list(KINDS)))
    names = [mutant.name for _, mutant in every]
    assert len(names) == len(set(names))
    assert {kind for kind, _ in every} == set(KINDS)
    assert "rcu/srcu.py:srcu_start: no fence 1" in names


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("srcu_enter: no fence 0", "srcu, tso: assertion in reader 0"),
        ("srcu_start: no fence 0", ""),
    ],
)
def test_a_mutant_is_caught_or_has_its_reason(name: str, told: str) -> None:
    ((kind, mutant),) = [each for each in enumerated(FUNCTIONS, ["fences"]) if each[1].name.endswith(name)]
    verdict = trial(600.0, (kind, mutant), lambda: False)
    assert verdict.caught == bool(told)
    assert verdict.by.startswith(told)
    assert verdict.why == ("" if told else "makes no difference to what its models ask for")
    assert verdict.room == "rcu"
