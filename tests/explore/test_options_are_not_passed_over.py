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
    lines = capsys.readouterr().out.splitlines()
    heads = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    assert [lines[number].split(":")[0] for number in heads] == ["batch", "stage2-collapse-rcu-3"]
    sizes = [lines[number + 1] for number in heads]
    assert sizes[0].endswith("at most 2 stores in a buffer")
    assert sizes[1].endswith("at most 2 stores in a buffer; too large to be searched whole: --random, --pct")
