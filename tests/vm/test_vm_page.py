"""docs/vm.md is true: its Python runs; what needs guest code, where there is a /dev/kvm."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from guestmem.engines.kvm import unusable

PAGE = (Path(__file__).parents[2] / "docs" / "vm.md").read_text()


def run(blocks: list[str]) -> None:
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "vm.md", "vm.md", 0)
    assert len(test.examples) >= len(blocks)
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


@pytest.mark.compiled_only
def test_what_runs_anywhere() -> None:
    run(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
def test_what_needs_the_kernel() -> None:
    run(re.findall(r"```python kvm\n(.*?)```", PAGE, re.DOTALL))
