"""What becomes of a slot's log at each change of the slot: kept, dropped, begun empty, begun with all pages."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from abi_words import ARENA, BUFFER, ENOENT, OK, PAGE, Ask, pages_of

MANUAL_PROTECT = 168
PAGES = 130
HERE, THERE = 0, 0x400000
LOG = 1
MODES = {"plain": 0, "manual": 1, "initially set": 3}


class Step(NamedTuple):
    """A change of slot 0 from flags and place to others (None: no such slot), and what its log is then."""

    was: tuple[int, int] | None
    becomes: tuple[int, int] | None
    log: str


STEPS = {
    "create": Step(None, (LOG, HERE), "new"),
    "create, read-only": Step(None, (LOG | 2, HERE), "new"),
    "create without": Step(None, (0, HERE), "none"),
    "switched on": Step((0, HERE), (LOG, HERE), "new"),
    "switched off": Step((LOG, HERE), (0, HERE), "none"),
    "nothing": Step((LOG, HERE), (LOG, HERE), "kept"),
    "moved": Step((LOG, HERE), (LOG, THERE), "kept"),
    "moved over itself": Step((LOG, HERE), (LOG, PAGE), "kept"),
    "moved and switched on": Step((0, HERE), (LOG, THERE), "new"),
    "moved and switched off": Step((LOG, HERE), (0, THERE), "none"),
    "moved without": Step((0, HERE), (0, THERE), "none"),
    "deleted": Step((LOG, HERE), None, "none"),
}


def put(ask: Ask, state: tuple[int, int] | None) -> None:
    flags, gpa = state or (0, 0)
    assert ask("region", 0, flags, gpa, PAGES * PAGE if state else 0, ARENA).result == OK


def log(ask: Ask) -> set[int] | None:
    answer = ask("get_log", 0, 0, BUFFER)
    assert answer.result in {OK, ENOENT}
    return pages_of(answer.log) if answer.result == OK else None


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_each_change(ask: Ask, step: Step, mode: int) -> None:
    assert ask("cap", MANUAL_PROTECT, 0, mode).result == OK
    assert ask("home").result == OK
    every = set(range(PAGES))
    begun = every if mode == MODES["initially set"] else set()
    written = {3, 64, 129}
    if step.was is not None:
        put(ask, step.was)
        for page in written:
            assert ask("write", step.was[1] + page * PAGE, 1).exits == ("done",)
    put(ask, step.becomes)
    assert log(ask) == {"none": None, "new": begun, "kept": begun | written}[step.log]
    if step.log == "new":
        manual = bool(mode)
        assert log(ask) == (begun if manual else set())
    if step.log == "kept" and step.becomes is not None:
        ask("write", step.becomes[1] + 5 * PAGE, 1)
        assert log(ask) == (begun | written | {5} if mode else {5})


def test_another_slots_change_leaves_a_log_alone(ask: Ask) -> None:
    assert ask("home").result == OK
    put(ask, (LOG, HERE))
    assert ask("write", 7 * PAGE, 1).exits == ("done",)
    for flags, gpa, size in ((LOG, 0x800000, PAGE), (LOG, 0x900000, PAGE), (0, 0x900000, PAGE), (0, 0, 0)):
        assert ask("region", 1, flags, gpa, size, ARENA).result == OK
    assert log(ask) == {7}


def test_the_mode_decides_when_a_log_begins_and_no_later(ask: Ask) -> None:
    put(ask, (LOG, HERE))
    assert ask("cap", MANUAL_PROTECT, 0, 3).result == OK
    assert log(ask) == set()
    put(ask, (LOG, THERE))
    assert log(ask) == set()
    put(ask, (0, THERE))
    put(ask, (LOG, THERE))
    assert log(ask) == set(range(PAGES))
    assert ask("cap", MANUAL_PROTECT, 0, 0).result == OK  # it may be switched at any time
    assert log(ask) == set(range(PAGES))
    assert log(ask) == set()  # that read it


def test_a_refused_change_leaves_the_log_alone(ask: Ask) -> None:
    assert ask("home").result == OK
    put(ask, (LOG, HERE))
    assert ask("write", 7 * PAGE, 1).exits == ("done",)
    assert ask("region", 1, 0, THERE, PAGE, ARENA).result == OK
    for fields in ((LOG, THERE, PAGES), (LOG | 2, HERE, PAGES), (LOG, HERE, 1), (0, (1 << 52) - PAGE, PAGES)):
        flags, gpa, count = fields
        assert ask("region", 0, flags, gpa, count * PAGE, ARENA).result < 0
    assert log(ask) == {7}
