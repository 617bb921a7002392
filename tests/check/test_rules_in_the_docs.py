"""The table of rules in docs/traces.md is the one that decides."""

from __future__ import annotations

from pathlib import Path

from guestmem.check import RULES

DOCS = Path(__file__).parents[2] / "docs" / "traces.md"


def test_each_row_is_in_the_docs_and_none_else() -> None:
    table = DOCS.read_text().split("| rule | evidence | proves | record |\n")[1].split("\n\n")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()[1:]]
    assert rows == [(rule.name, rule.evidence, rule.proves.value, rule.record) for rule in RULES.values()]
