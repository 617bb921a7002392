"""The examples of docs/gmem.md run as they stand there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_examples_run() -> None:
    text = (ROOT / "docs" / "gmem.md").read_text()
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(blocks, {}, "gmem.md", "docs/gmem.md", 0)
    assert len(test.examples) > 10
    output: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
