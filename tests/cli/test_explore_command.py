"""``guestmem explore`` and ``guestmem replay``: what they print, write, and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestmem.cli import main
from guestmem.explore import Mutation
from guestmem.explore.models import find, models
from guestmem.explore.search import explore


def test_list_says_what_each_model_proves_and_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--list"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for model in models():
        assert f"{model.name}: {model.proves} {model.size}" in out


def test_a_clean_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "srcu"]) == 0
    out = capsys.readouterr().out
    for search in ("states  sc ", "dpor    sc ", "states  tso ", "states  relaxed ", "states  stale "):
        assert f"  {search}" in out
    assert " ".join(out.split()).count(": complete") == 5
    assert "states and dpor came to the same ends" in out
    assert "nothing found" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "pause", "--no-weak", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["model"], report["clean"], report["complete"], report["searches_agree"]) == (
        "pause",
        True,
        True,
        True,
    )
    assert [each["search"] for each in report["searches"]] == ["states", "dpor"]


def test_pct_prints_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "pause-4", "--pct", "2", "--runs", "20", "--no-weak"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "PCT: a bug of depth 2 is found by each run with probability at least" in out


def test_in_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "srcu", "--no-weak", "--jobs", "2"]) == 0
    assert "states and dpor came to the same ends" in capsys.readouterr().out


def test_a_bound_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "srcu-2", "--bound", "1", "--no-weak"]) == 0
    assert "at most 1 preemption," in capsys.readouterr().out


def test_a_counterexample_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_wait = Mutation(
        "rcu/srcu.py", "    return srcu_wait(srcu, base, readers, srcu_start(srcu, base))", "    return u64(0)"
    )
    found = explore(find("srcu"), mutations=[no_wait]).counterexamples[0]
    found.save(tmp_path / "c.json")
    assert main(["replay", str(tmp_path / "c.json"), "--perfetto", str(tmp_path / "t.json")]) == 1
    out = capsys.readouterr().out
    assert found.story in out
    assert "object 1 was freed under its reader" in " ".join(out.split())
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert main(["replay", str(tmp_path / "c.json"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["same"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore"], "MODEL: name some, or --all; --list says which there are"),
        (["explore", "nothing"], "model: 'nothing' is not one of "),
        (["explore", "srcu", "--all"], "MODEL: name some, or --all"),
        (["explore", "srcu", "--random", "5", "--pct", "2"], "--exhaustive, --random and --pct: one of them"),
        (["explore", "srcu", "--random", "5", "--bound", "2"], "--bound: only an exhaustive search has bounds"),
        (["explore", "srcu", "pause", "--resume", "f"], "--resume: for one model and one job"),
        (["explore", "srcu", "--save", "/nowhere/f"], "--save /nowhere/f: there is no such folder"),
        (["explore", "srcu", "--random", "0"], "--random"),
        (["replay", "/nowhere"], "/nowhere: No such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"model": "nothing"}', '{"model": "srcu"}'])
def test_a_file_that_is_no_counterexample(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_text(text)
    assert main(["replay", str(tmp_path / "f")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
