"""``--coverage`` and ``--list MODEL`` say which branches models' threads ran, and being followed changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guestmem.cli import main
from guestmem.explore.coverage import Coverage, trace
from guestmem.explore.models import find
from guestmem.explore.outcome import Budget
from guestmem.explore.own import all_of
from guestmem.explore.probes import probed
from guestmem.explore.task import Task, run
from guestmem.explore.unreached import REASONS
from guestmem.explore.world import World

OWN = """
from guestmem.explore import Model, Scene


def work(atomics, words, me):
    if atomics.fetch_add(words, 0, 1) == 0:
        atomics.store_relaxed(words, 1, me)
    elif me > 7:
        atomics.store_relaxed(words, 2, me)
    for _ in range(me):
        atomics.load_relaxed(words, 1)
    return 1 if me and me < 3 else 0


def only_in_properties(view):
    return view.word("w", 2) == 0


def build(scene: Scene) -> None:
    atomics = scene.room("atomics")
    words = scene.words("w", 3)
    scene.thread("a", lambda: work(atomics, words, 1))
    scene.thread("b", lambda: work(atomics, words, 2))
    scene.final("nobody is above 7", only_in_properties)


MODELS = (Model("own", "nothing", "2 threads", build),)
"""


def test_a_branch_is_taken_or_not_as_a_reader_of_the_model_says(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    (model,) = all_of(str(file))
    found = trace(model)
    assert found.complete
    coverage = Coverage()
    coverage.add(found)
    (covered,) = coverage.files
    missed = {(branch.function, branch.what) for branch in covered.missed}
    assert missed == {
        ("work", "if me > 7: holds"),
        ("work", "… if me and me < 3 else …: does not hold"),
        ("only_in_properties", "called"),
        ("build", "called"),
    }
    why = {branch.function: coverage.why(branch) for branch in covered.missed if branch.what == "called"}
    assert set(why) == {"only_in_properties", "build"}
    assert all(each.startswith("runs only when no thread does") for each in why.values())
    assert covered.functions == (1, 3)
    assert covered.atomics == (3, 4)  # the store above 7 is not


TEXT = """
def f(a):
    while a:
        try:
            b = a.pop() and g(a) or 3
        except ValueError:
            b = 4
        for _ in range(b):
            pass
    return 5 if b else 6
"""
CALLED, ROUND, OVER, AND, OR, EXCEPT, EACH, ENOUGH, FIVE, SIX = range(10)


def test_branches_of_every_kind_are_told_apart() -> None:
    tree, branches = probed(TEXT, "f.py")
    assert [(branch.line, branch.what) for branch in branches] == [
        (2, "called"),
        (3, "while a: goes round"),
        (3, "while a: ends"),
        (5, "… and g(a): looked at"),
        (5, "… or 3: looked at"),
        (6, "except ValueError"),
        (8, "for _ in range(b): goes round"),
        (8, "for _ in range(b): ends"),
        (10, "… if b else …: holds"),
        (10, "… if b else …: does not hold"),
    ]
    code = compile(tree, "f.py", "exec")
    plain = compile(TEXT, "f.py", "exec")
    for a, answer, end in (([0], 0, {OR}), ([1], 2, {AND}), ([1], 0, {AND, OR}), ([1], None, {AND, EXCEPT})):
        taken: set[int] = set()

        def g(_: object, answer: int | None = answer) -> int:
            if answer is None:
                raise ValueError
            return answer

        came = []
        for each in (code, plain):
            names: dict[str, Any] = {"_probe": taken.add, "g": g}
            exec(each, names)
            came.append(names["f"](list(a)))
        assert came == [5, 5]
        assert taken == end | {CALLED, ROUND, OVER, EACH, ENOUGH, FIVE}


@pytest.mark.parametrize("name", ["srcu", "stage2-map", "cached-slot", "slots-invalid"])
def test_being_followed_changes_neither_states_nor_ends(name: str) -> None:
    came = []
    for traced in (False, True):
        with World(find(name), traced=traced) as world:
            outcome = run(Task(find(name), "states"), Budget(), world=world)
            came.append((outcome.complete, outcome.distinct, outcome.points, outcome.finals))
    assert came[0] == came[1]


def test_each_reason_is_of_a_function_that_is_there() -> None:
    known = [(branch.file, branch.function) for each in Coverage().files for branch in each.branches]
    for place, functions in REASONS.items():
        here = {name for file, name in known if file == place or file.startswith(f"{place}/")}
        assert set(functions) <= here, f"{place}: gone, or not concurrent any more: {set(functions) - here}"


def test_the_command_tells_what_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--coverage", "srcu"]) == 0
    out = capsys.readouterr().out
    assert ["rcu/srcu.py", "7/8"] in [line.split()[:2] for line in out.splitlines()]
    assert "srcu_wait_for: if left == 0: holds" in out
    assert "1 model followed" in out
    assert main(["explore", "--coverage", "srcu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"] == [{"model": "srcu", "complete": True}]
    (srcu,) = [each for each in told["files"] if each["file"] == "rcu/srcu.py"]
    assert srcu["functions"] == [7, 8]
    assert all("srcu" in each["models"] for each in srcu["taken"])


def test_a_model_that_is_named_is_listed_with_what_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--list", "srcu"]) == 0
    assert "    rcu/srcu.py: srcu_enter, srcu_exit," in capsys.readouterr().out
    assert main(["explore", "--list", "srcu", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "srcu_synchronize" in row["functions"]["rcu/srcu.py"]


def test_options_that_it_would_pass_over_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--coverage", "srcu", "--pct", "2"]) == 2
    assert "--pct: not with --coverage" in capsys.readouterr().err


def test_each_branch_that_is_missed_has_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Of functions that are called, as the searches were; of others, that these models are not all there are."""
    assert main(["explore", "--coverage", "srcu", "--json"]) == 0
    (srcu,) = [each for each in json.loads(capsys.readouterr().out)["files"] if each["file"] == "rcu/srcu.py"]
    why = {(each["function"], each["branch"]): each["reason"] for each in srcu["missed"]}
    assert why["srcu_wait_for", "if left == 0: holds"].startswith(
        "the models that call the function were searched whole"
    )
    assert why["srcu_oldest", "called"].startswith("none of these models calls it; whether another does")
    coverage = Coverage(every=False)
    with_a_limit = trace(find("srcu-2"), states=50)
    assert not with_a_limit.complete
    coverage.add(with_a_limit)
    (covered,) = [each for each in coverage.files if each.file == "rcu/srcu.py"]
    called = {branch.function for branch in covered.branches} - {
        b.function for b in covered.missed if b.what == "called"
    }
    reasons = {coverage.why(branch) for branch in covered.missed if branch.function in called}
    assert reasons == {"unknown: of the models that call the function, some were not searched whole"}


def test_a_run_goes_on_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    command = ["explore", "--coverage", "--resume", str(kept), "--json"]
    assert main([*command, "srcu"]) == 0
    first = kept.read_text()
    capsys.readouterr()
    kept.write_text(first + '{"cut": sh')
    assert main([*command, "srcu", "flush"]) == 0
    together = json.loads(capsys.readouterr().out)
    text = kept.read_text()
    assert text.startswith(first)
    assert len(text.splitlines()) == 3
    assert main(["explore", "--coverage", "--json", "srcu", "flush"]) == 0
    assert json.loads(capsys.readouterr().out) == together
    assert main([*command, "srcu", "--states", "7"]) == 2
    assert "was begun with other sources or options" in capsys.readouterr().err
    kept.write_text("no file of coverage\n")
    assert main([*command, "srcu"]) == 2
    assert "is no file of --coverage" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_follow_what_one_follows(capsys: pytest.CaptureFixture[str]) -> None:
    came = []
    for jobs in ("1", "2"):
        assert main(["explore", "--coverage", "srcu", "gmem-late", "--jobs", jobs, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        told["models"].sort(key=str)
        for each in (branch for file in told["files"] for branch in file["taken"]):
            each["models"].sort()
        came.append(told)
    assert came[0] == came[1]


def test_lists_and_errors_fit_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--list"]) == 0
    assert main(["explore", "--mutants", "--list"]) == 0
    assert main(["explore", "--coverage", "srcu"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []
    for words in (["srcu-3"], ["--mutants", "srcu-no-wai"], ["--litmus", "SBB"], ["nothing like it"]):
        assert main(["explore", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert len(error) < 160
    assert main(["explore", "srcu-3"]) == 2
    assert "model: 'srcu-3' is not one of " in (error := capsys.readouterr().err)
    assert "of explore --list; near: srcu-2" in error
