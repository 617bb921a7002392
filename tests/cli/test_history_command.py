"""``guestmem history`` says the verdict, shows its witness, and ends with a status that a script can use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestmem.cli import main

OLD = '{"start": 3, "end": 7, "saw": "old", "who": "vCPU 1", "where": "page 5"}\n'
NEW = '{"start": 0, "end": 2, "saw": "new", "who": "vCPU 0"}\n'
WITNESS = "  [0, 2] vCPU 0\n  [3, 7] vCPU 1 at page 5\n"
LATER = '{"start": 5, "end": 9, "saw": "new"}\n'


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (OLD + LATER, 0, "pass: 2 accesses are explained\n  update 1 can have been at 3\n"),
        (
            NEW + OLD,
            1,
            f"fail: vCPU 1 saw update 1 not done from 3 on, after vCPU 0 had seen it done until 2\n{WITNESS}",
        ),
        (OLD, 3, "could not look: no access saw update 1 done, of 1\n"),
    ],
)
def test_verdict_and_status(
    text: str, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    assert main(["history", str(path)]) == status
    assert capsys.readouterr().out == said
    assert main(["history", "--json", str(path)]) == status
    assert json.loads(capsys.readouterr().out)["verdict"] == said.partition(":")[0]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(OLD + "{]")
    assert main(["history", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"guestmem: {path}:2: ")
    assert said.err.count("\n") == 1
