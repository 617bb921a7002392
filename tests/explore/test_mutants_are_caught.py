"""Every mutant is found by the first of its models, and its text is there.

A slice of them here; all with GUESTMEM_WHOLE=1, and with all of their models by `guestmem explore --mutants`.
"""

from __future__ import annotations

import json

import pytest

from guestmem.cli import main
from guestmem.errors import UsageError
from guestmem.explore import load
from guestmem.explore.models import find as find_model
from guestmem.explore.mutants import Mutant, find, mutants
from guestmem.explore.mutants.stage2 import MUTANTS as STAGE2
from guestmem.explore.trial import try_mutant
from slices import one_in

SLOTS = [
    pytest.param(mutant, mutant.models[0], id=f"{mutant.name}-{mutant.models[0]}")
    for mutant in mutants()
    if mutant not in STAGE2
]
CLEAN = Mutant("clean", "changes a comment", "rcu/srcu.py", "  # a stale epoch only", "  # stale only", ("srcu",))


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_its_text_is_in_the_sources_once(mutant: Mutant) -> None:
    assert mutant.models, "no model has to find it"
    for name in mutant.models:
        with load((*find_model(name).geometry, *mutant.mutations)):
            pass


def test_names_are_there_once_and_origins_are_told() -> None:
    names = [mutant.name for mutant in mutants()]
    assert len(set(names)) == len(names) >= 12
    assert all(mutant.what and mutant.origin for mutant in mutants())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mutant", "model"), one_in(14, SLOTS))
def test_it_is_caught(mutant: Mutant, model: str) -> None:
    verdict = try_mutant(mutant, model, seconds=3600.0)  # a loaded machine must not make one survive
    assert verdict.caught, f"{mutant.what}: nothing found in {verdict.runs} runs"
    assert verdict.runs


def test_what_changes_nothing_survives() -> None:
    verdict = try_mutant(CLEAN, "srcu")
    assert not verdict.caught
    assert verdict.runs > 1000


def test_a_mutant_that_no_longer_applies_is_an_error() -> None:
    gone = Mutant("gone", "", "rcu/srcu.py", "no such text", "", ("srcu",))
    with pytest.raises(UsageError, match="text found 0 times"):
        try_mutant(gone, "srcu")


def test_one_whose_code_cannot_run_is_not_caught() -> None:
    no_code = Mutant("no-code", "", "engines/soft/cores.py", "u64(0x7FFFFFFF)", "NO_SUCH_NAME", ("cores-3",))
    verdict = try_mutant(no_code, "cores-3")
    assert not verdict.caught
    assert verdict.why == "is no code that could run: NameError: name 'NO_SUCH_NAME' is not defined"


def test_the_command_tells_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--mutants", "srcu-no-wait", "give-core-wakes-one"]) == 0
    out = capsys.readouterr().out
    assert "freed under its reader" in " ".join(out.split())
    assert "2 mutants (1 of Linux's own bugs), 3 trials, 0 not caught" in out


@pytest.mark.slow
def test_processes_say_what_one_says(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for jobs in ("1", "2"):
        assert main(["explore", "--mutants", "srcu-no-wait", "give-core-wakes-one", "--jobs", jobs, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        told.append([{name: value for name, value in row.items() if name != "seconds"} for row in rows])
    assert len(told[0]) == 3
    assert told[0] == told[1]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--mutants", "srcu-enter-fence", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["caught"], row["search"]) for row in rows] == [
        ("srcu", True, "states tso"),
        ("deferred-2", True, "states tso"),
    ]


def test_one_that_survives_is_exit_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guestmem.explore.mutants.mutants", lambda: (CLEAN,))
    assert main(["explore", "--mutants"]) == 1
    assert "srcu: NOT CAUGHT in " in capsys.readouterr().out


def test_an_unknown_name_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--mutants", "nothing"]) == 2
    assert "mutant: 'nothing' is not one of " in capsys.readouterr().err
    with pytest.raises(UsageError, match="is not one of"):
        find("nothing")
