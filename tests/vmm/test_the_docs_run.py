"""docs/vmm.md is true: its Python runs, its JSON is a map, and the tests that it names are there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from guestmem.vmm.description import read_description

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/vmm.md").read_text()


@pytest.mark.compiled_only
def test_its_python_runs() -> None:
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(blocks, {}, "vmm.md", "vmm.md", 0)
    output: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=output.append)
    assert runner.tries > 5
    assert runner.failures == 0, "".join(output)


def test_its_json_is_a_map() -> None:
    for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL):
        described = read_description(block)
        described.make()
        assert [each.region.name for each in described.map.spaces[0].view] == ["pc.ram"]


def test_what_it_names_is_there() -> None:
    for path in re.findall(r"`((?:tests|examples|benchmarks)/[^`@ ]+)`", TEXT):
        assert (ROOT / path).exists(), path
