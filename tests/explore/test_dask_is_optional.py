"""Without distributed, `--dask` says in one line what to install; nothing else needs it."""

from __future__ import annotations

import sys

import pytest

from guestmem.cli import main


def test_without_it_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["explore", "srcu", "--dask", "tcp://127.0.0.1:8786"]) == 2
    err = capsys.readouterr().err
    assert "--dask: the package distributed is not installed" in err
    assert len(err.splitlines()) == 1


def test_dask_and_jobs_are_one_or_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "srcu", "--dask", "tcp://127.0.0.1:8786", "--jobs", "2"]) == 2
    assert "--dask and --jobs: one of them" in capsys.readouterr().err
