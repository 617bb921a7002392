"""docs/exit-retry.md: every sentence of what it claims has a note, and what a note names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guestmem.explore.models import find

pytestmark = pytest.mark.no_kvm
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "exit-retry.md").read_text()
CLAIMS = ("The promise", "The conditions", "The rules", "Why it is enough, and what each step rests on", "Exits")
NOTES = dict(re.findall(r"^\[\^(\w+)\]: (.*)$", PAGE, re.MULTILINE))


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(title: str) -> list[str]:
    """Paragraphs, items and rows of a section; not code, and not the table of the sweep's figures."""
    found: list[str] = []
    for block in re.split(r"\n\n+", section(title)):
        if block.strip("\n").startswith("    "):
            continue
        if block.startswith("|"):
            head, _, *rows = block.strip().splitlines()
            found += rows if head.endswith("shown by |") else []
        else:
            found += re.split(r"\n(?=- |\d+\. )", block.strip())
    return [block for block in found if block and not block.startswith("And those that cannot be looked at")]


@pytest.mark.parametrize("title", CLAIMS)
def test_every_sentence_has_a_note(title: str) -> None:
    """Its own, or that of one of the next two; nothing stands behind the last note of a paragraph."""
    for block in blocks(title):
        *parts, rest = re.split(r"(?:\[\^\w+\])+", block)
        assert parts, block
        assert rest.strip() in {"", "|"}, block
        for part in parts:
            assert len(re.findall(r"[.!?](?:\*\*?)?(?=\s)", re.sub(r"^\d+\. ", "", part))) <= 3, part


def test_notes_are_used_and_there() -> None:
    used = set(re.findall(r"\[\^(\w+)\](?!:)", PAGE))
    assert used == NOTES.keys()
    assert len(NOTES) > 50


@pytest.mark.parametrize("name", NOTES)
def test_what_a_note_names_is_there(name: str) -> None:
    note = NOTES[name]
    named = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`", note)
    models = [model for words in re.findall(r"`guestmem explore ([\w -]+)`", note) for model in words.split()]
    for path, function in named:
        text = (ROOT / path).read_text()
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), f"{path}::{function}"
    for model in models:
        assert find(model).name == model
    assert named or models or note.startswith("By source"), note
