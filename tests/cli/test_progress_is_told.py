"""Long work says how long it will take, and where no terminal shows a bar, a line every ten seconds how far it is."""

from __future__ import annotations

import re
import time

import pytest

from guestmem.cli import _progress
from guestmem.cli._progress import Progress


def test_lines_come_while_the_working_thread_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while something compiles: the thread that works is busy, and others tell."""
    monkeypatch.setattr(_progress, "EVERY_S", 0.02)
    with Progress() as progress:
        progress.expected = 100.0
        progress.at("compiling atomic", 0.0)
        err = ""
        deadline = time.monotonic() + 60
        while err.count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            err += capsys.readouterr().err
        progress.at("atomic, 2 vCPUs", 0.25)
        while "25%" not in err and time.monotonic() < deadline:
            time.sleep(0.01)
            err += capsys.readouterr().err
    assert re.search(r"^guestmem: compiling atomic; \d+ s so far, after that about 100 s$", err, re.MULTILINE)
    assert re.search(r"^guestmem: 25%, atomic, 2 vCPUs; \d+ s so far, .* left$", err, re.MULTILINE)
    assert all(line.startswith("guestmem: ") for line in err.splitlines())


def test_what_is_done_tells_what_is_left() -> None:
    progress = Progress()
    assert progress.left() is None
    progress.expected = 50.0
    assert progress.left() is None, "what is compiled first takes its time, which nobody knows"
    progress.at("a row", 0.01)
    assert progress.left() == pytest.approx(49.5)
    progress._counted -= 30
    progress.at("a row", 0.75)
    assert progress.left() == pytest.approx(10, rel=0.1)
