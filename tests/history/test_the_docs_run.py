"""docs/history.md is true: its Python runs, and its JSON lines are read."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from guestmem.history import read_json_lines

TEXT = (Path(__file__).parents[2] / "docs/history.md").read_text()


@pytest.mark.compiled_only
def test_its_python_runs() -> None:
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(blocks, {}, "history.md", "history.md", 0)
    output: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=output.append)
    assert runner.tries > 5
    assert runner.failures == 0, "".join(output)


def test_its_lines_are_read() -> None:
    lines = re.findall(r'^    (\{"(?:start|update)".*\})$', TEXT, re.MULTILINE)
    accesses, updates = read_json_lines(lines)
    assert (len(accesses), len(updates)) == (4, 3)
