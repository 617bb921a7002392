"""``guestmem bench`` lists the benchmarks of a clone and runs one by name; a wrong name is one line."""

from __future__ import annotations

import pytest

from guestmem.cli import main


def test_without_a_name_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    assert "ranges     Values of ranges" in capsys.readouterr().out


def test_arguments_reach_the_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ranges", "--help"]) == 0
    assert "--svg FOLDER" in capfd.readouterr().out


def test_a_wrong_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("guestmem: bench: 'nothing' is not one of abi, ")
