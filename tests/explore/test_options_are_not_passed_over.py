"""An option that would have no effect is refused in one line that names it."""

from __future__ import annotations

import pytest

from guestmem.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["srcu", "--runs", "5"], "--runs: only of --pct"),
        (["srcu", "--random", "5", "--runs", "5"], "--runs: only of --pct"),
        (["srcu", "--random", "5", "--pct", "3"], "--exhaustive, --random and --pct: one of them"),
        (["srcu", "--random", "5", "--bound", "1"], "--bound: only an exhaustive search has bounds"),
        (["--mutants", "srcu-no-wait", "--dask", "tcp://x:1"], "--dask: not with --mutants"),
        (["--mutants", "srcu-no-wait", "--save", "f"], "--save: not with --mutants"),
        (["--list", "--random", "5"], "--random: not with --list"),
        (["srcu", "--compact", "1", "--bound", "1"], "--compact: not with --bound"),
        (["srcu", "--compact", "1", "--random", "5"], "--compact: not with --random"),
        (["srcu", "--compact", "1", "--go-on"], "--compact: not with --go-on"),
        (["srcu", "--compact", "1", "--resume", "f"], "--compact: not with --resume"),
        (["--list", "nothing"], "model: 'nothing' is not one of "),
        (["srcu", "--all"], "MODEL: name some, or --all"),
        ([], "MODEL: name some, or --all"),
    ],
)
def test_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_list_of_some_models_says_their_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--list", "batch", "stage2-collapse-rcu-3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    first, second = text.split(" stage2-collapse-rcu-3: ")
    assert first.startswith("batch: ")
    assert "; at most 2 stores in a buffer " in first
    assert "too large" not in first
    assert "; at most 2 stores in a buffer; too large to be searched whole: --random, --pct " in second
