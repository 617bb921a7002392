"""The README is true: its Python runs, its commands exist, its map of the house names every room."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from guestmem.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.compiled_only
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(blocks, {}, "README.md", "README.md", 0)
    assert test.examples
    output: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile


def test_its_commands_exist() -> None:
    shown = re.findall(r"^\s*(?:\$ )?guestmem (\w+)", README, re.MULTILINE)
    assert {"check", "compare"} <= set(shown)
    assert set(shown) <= set(COMMANDS)


def test_its_map_names_every_room() -> None:
    package = ROOT / "src" / "guestmem"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    named = set(re.findall(r"`(\w+)/?`", README.partition("## The house")[2]))
    assert rooms <= named | {"__pycache__"}, rooms - named


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
