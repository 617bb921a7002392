"""A model of the user's own is searched, mutated, replayed, handed to processes; mistakes in it are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestmem.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples/models"
HEAD = "from guestmem.explore import Model, Mutant, Scene\n"
LOST = (
    HEAD
    + """
def build(scene):
    atomics = scene.room("atomics")
    words = scene.words("w", 1)
    def add():
        seen = atomics.load_acquire(words, 0)
        atomics.store_release(words, 0, seen + 1)
    scene.thread("a", add)
    scene.thread("b", add)
    scene.final("both count", lambda view: view.word("w", 0) == 2)
MODELS = (Model("lost", "nothing is lost", "2 threads", build),)
"""
)
BOX = (
    HEAD
    + """
def build(scene):
    atomics = scene.room("atomics")
    words = scene.words("w", 2)
    box = {"n": 0}
    def a():
        box["n"] += 1
        atomics.store_release(words, 1, 1)
    def b():
        atomics.load_acquire(words, 1)
        assert box["n"] < 2
    scene.thread("a", a)
    scene.thread("b", b)
MODELS = (Model("box", "", "", build),)
"""
)
RANDOM = (
    HEAD
    + """
import itertools
numbers = itertools.count()
def build(scene):
    atomics = scene.room("atomics")
    words = scene.words("w", 1)
    def a():
        atomics.store_release(words, 0, next(numbers))
    def b():
        atomics.load_acquire(words, 0)
    scene.thread("a", a)
    scene.thread("b", b)
MODELS = (Model("random", "", "", build),)
"""
)
UNNAMED = (
    HEAD
    + """
def build(scene):
    atomics, words = scene.room("atomics"), scene.room("compiled").words(1)
    scene.thread("a", lambda: atomics.load_acquire(words, 0))
MODELS = (Model("unnamed", "", "", build),)
"""
)


def written(folder: Path, text: str) -> str:
    file = folder / "mine.py"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_the_examples_are_clean_and_their_mutants_are_found(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", str(example), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["clean"]
    assert all(search["complete"] for search in report["searches"] if search["search"] == "states")
    assert main(["explore", str(example), "--mutants", "--json"]) == 0
    assert all(verdict["caught"] for verdict in json.loads(capsys.readouterr().out))


def test_a_finding_is_saved_replayed_and_found_by_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, saved = written(tmp_path, LOST), str(tmp_path / "found.json")
    assert main(["explore", file, "--save", saved]) == 1
    assert "both count" in capsys.readouterr().out
    assert main(["replay", saved]) == 1
    assert "final: both count" in capsys.readouterr().out
    assert main(["explore", f"{file}:lost", "--no-weak", "--jobs", "2"]) == 1
    assert "both count" in capsys.readouterr().out


def test_a_mutant_is_told_in_full(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = str(tmp_path / "found.json")
    assert main(["explore", str(EXAMPLES / "treiber.py"), "--mutant", "no-tag", "--save", saved]) == 1
    assert "compare-exchange head[0]" in " ".join(capsys.readouterr().out.split())
    assert main(["replay", saved]) == 1, "the file's changes are replayed, too"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOX, "model box: thread 'a' uses 'box', which changed while threads ran"),
        (RANDOM, "model random: thread 'a' is no function of what its atomics return"),
        ("x = 1\n", "no MODELS in it"),
        ("MODELS = (1,)\n", "MODELS holds 1, which is no Model"),
        ("def f(:\n", "mine.py:1: invalid syntax"),
        ("import nothing_of_this_name\n", "mine.py:1: ModuleNotFoundError"),
        (LOST.replace('"w", 1', '"w"'), "mine.py:5 (build): TypeError"),
    ],
)
def test_mistakes_are_told_in_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", written(tmp_path, text)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_words_without_a_name_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", written(tmp_path, UNNAMED)]) == 1
    assert "words that the scene does not name: Scene.words()" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("target", ["/nowhere/mine.py", "no.such.module", f"{EXAMPLES / 'treiber.py'}:other"])
def test_what_is_not_there_is_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", target]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
