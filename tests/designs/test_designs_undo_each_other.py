"""An engine that is used by one design after another answers exits as the last one wants, and nothing stays on."""

from __future__ import annotations

import pytest

from guestmem.designs import DESIGNS, find
from guestmem.engines import Capability, Counts

ANSWERS = {
    "sequential_answered": (True, False),
    "exit_retry": (False, True),
    "mmio_retry": (False, True),
    "user_exit": (False, True),
}
"""What a design has on afterwards: MMIO answered, exits retried. All others: nothing."""


class Switches:
    """An engine that can do everything, and only notes its two switches."""

    name = "switches"
    capabilities = ~Capability(0)
    vcpus = 1

    def __init__(self) -> None:
        self.counts = Counts()
        self.answers = self.retries = self.fetches_only = False
        self.calls: list[tuple[str, bool]] = []

    def answer_mmio(self, answer: bool) -> None:
        self.answers = answer
        self.calls.append(("answer_mmio", answer))

    def retry_exits(self, retry: bool, *, fetches_only: bool = False) -> None:
        self.retries, self.fetches_only = retry, fetches_only
        self.calls.append(("retry_exits", retry))


@pytest.mark.parametrize("first", ANSWERS)
@pytest.mark.parametrize("then", [design.name for design in DESIGNS])
def test_the_last_one_decides(first: str, then: str) -> None:
    engine = Switches()
    find(first).prepare(engine)  # type: ignore[arg-type] # deliberately not a whole one
    assert (engine.answers, engine.retries) == ANSWERS[first]
    find(then).prepare(engine)  # type: ignore[arg-type] # as above
    assert (engine.answers, engine.retries) == ANSWERS.get(then, (False, False))
    assert engine.fetches_only == (then == "mmio_retry")


def test_what_a_design_needs_is_never_off_for_a_moment() -> None:
    engine = Switches()
    for name, switch in (("sequential_answered", "answer_mmio"), ("exit_retry", "retry_exits")):
        find(name).prepare(engine)  # type: ignore[arg-type] # as above
        engine.calls.clear()
        find(name).prepare(engine)  # type: ignore[arg-type] # as above
        assert (switch, False) not in engine.calls


def test_what_running_vcpus_still_need_can_be_left_on() -> None:
    engine = Switches()
    find("exit_retry").prepare(engine)  # type: ignore[arg-type] # as above
    find("pause_if_overlap").prepare(engine, reset=False)  # type: ignore[arg-type] # as above
    assert engine.retries
