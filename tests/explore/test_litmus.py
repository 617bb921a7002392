"""Litmus tests end as published: none missing under sc, tso and relaxed, none extra under any memory model."""

from __future__ import annotations

import json
import random

import pytest

from axioms import allowed
from guestmem.cli import main
from guestmem.explore.litmus import TESTS, Litmus, outcomes
from guestmem.explore.task import MEMORIES
from litmus_campaign import compared, drawn
from slices import sliced

LACKS = {"S", "2+2W", "2+2W+rels"}
"""What ``stale`` has not of RC11: stores that come in the middle of a word's order."""


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_all_ends_are_those_that_the_axioms_allow(test: Litmus) -> None:
    published = allowed(test.threads, "sc", "tso", "rc11")
    assert {name for name, ends in published.items() if any(map(test.shows, ends))} == test.allowed
    every, lacks = compared(test.threads)
    assert bool(lacks) == (test.name in LACKS)
    assert every


def test_what_each_model_shows() -> None:
    """The table of docs/explore.md in short: which of the tests tell two memory models apart."""
    shown = {
        memory: {test.name for test in TESTS if any(map(test.shows, outcomes(test.threads, memory)))}
        for memory in MEMORIES
    }
    assert shown["sc"] == set()
    assert shown["tso"] == {"SB", "SB+rel-acq", "SB+fence+po", "SB+forward", "R", "RWC"}
    assert shown["relaxed"] == shown["tso"] | {"MP", "MP+po+acq", "S", "2+2W", "ISA2"}
    assert shown["stale"] - shown["relaxed"] == {"SB+rmws", "MP+rel+po", "IRIW", "IRIW+acqs", "WRC"}
    assert shown["relaxed"] - shown["stale"] == {"S", "2+2W"}


@pytest.mark.slow
def test_random_programs_end_as_the_axioms_say(seed: int) -> None:
    for number in range(sliced(25, 10_000)):
        compared(drawn(random.Random(f"{seed} {number}")))


def test_an_end_too_many_or_too_few_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself, with one memory model in another's place."""
    threads = ("Wx1 Wy1", "Ry Rx")
    right = outcomes

    def wrong(threads: tuple[str, ...], memory: str) -> object:
        return right(threads, {"sc": "relaxed", "stale": "stale"}.get(memory, "sc"))

    monkeypatch.setattr("litmus_campaign.outcomes", wrong)
    with pytest.raises(AssertionError, match="in one only"):
        compared(threads)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--litmus", "SB", "IRIW"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].split() == ["SB", "-", "yes", "yes", "-", "yes", "yes", "yes"]
    assert max(map(len, out.splitlines())) < 80
    assert main(["explore", "--litmus", "Wx1 Ry | Wy1 Rx"]) == 0
    assert "0 | 0; 1 1 0" in capsys.readouterr().out
    assert main(["explore", "--litmus", "MP", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["published"] == {"sc": False, "tso": False, "rc11": True}
    assert row["shown"] == {"sc": False, "tso": False, "relaxed": True, "stale": True}
    for wrong in (["nothing"], ["Wx1 Qy | Wy1"], ["SB", "--pct", "2"]):
        assert main(["explore", "--litmus", *wrong]) == 2
    assert "Traceback" not in capsys.readouterr().err
