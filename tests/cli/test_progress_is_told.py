"""Long work says how long it will take, and where no terminal shows a bar, a line every ten seconds how far it is."""

from __future__ import annotations

import re
import threading
import time
from types import SimpleNamespace

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


def test_nothing_is_told_once_it_has_ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that was about to be written when the work ended comes before whatever is printed next."""
    monkeypatch.setattr(_progress, "EVERY_S", 0.001)
    progress, about_to = Progress(), threading.Event()
    say = progress.say

    def late(text: str) -> None:
        about_to.set()
        time.sleep(0.2)
        say(text)

    monkeypatch.setattr(progress, "say", late)
    with progress:
        about_to.wait()
    assert capsys.readouterr().err.startswith("guestmem: starting; ")
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_what_is_done_tells_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    progress = Progress()
    assert progress.left() is None
    progress.expected = 50.0
    assert progress.left() is None, "what is compiled first takes its time, which nobody knows"
    progress.at("a row", 0.01)
    assert progress.left() == pytest.approx(49.5)
    clock[0] += 30
    progress.at("a row", 0.75)
    assert progress.left() == pytest.approx(10)
