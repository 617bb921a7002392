"""README and its library page are true: Python runs, commands exist, the map of the house names every room."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from pathlib import Path

import pytest

from guestmem.check import Verdict, check
from guestmem.cli import COMMANDS
from guestmem.report.check import brief, hole_cells
from guestmem.traces import read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


LIBRARY = (ROOT / "docs" / "library.md").read_text()


@pytest.mark.compiled_only
@pytest.mark.timeout(900)  # a Vm, compiled first
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(blocks, {}, "library.md", "docs/library.md", 0)
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
    shown = re.findall(r"^\s*(?:\$ )?guestmem (\w[\w-]*)|`guestmem (\w[\w-]*)", README, re.MULTILINE)
    shown = [one or other for one, other in shown]
    assert {"check", "record"} <= set(shown)
    assert set(shown) <= set(COMMANDS)


def test_what_its_command_prints_fits_80_columns_and_is_open() -> None:
    (command, shown) = re.findall(r"```\n\$ (.*?)\n(.*?)```", README, re.DOTALL)[0]
    assert all(len(line) <= 80 for line in shown.splitlines())
    name = command.split()[-1]
    report = check(read(ROOT / name))
    report_lines = brief(replace(report, path=name)).split()
    assert [hole.verdict for hole in report.holes] == [Verdict.OPEN]
    for words in (hole_cells(report.holes[0]).verdict, hole_cells(report.holes[0]).frames[0], *report_lines[:8]):
        assert words in " ".join(shown.split())


def test_its_map_names_every_room() -> None:
    package = ROOT / "src" / "guestmem"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    named = set(re.findall(r"`(\w+)/?`", README.partition("## The house")[2]))
    assert rooms <= named | {"__pycache__"}, rooms - named


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
