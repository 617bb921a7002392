"""``guestmem dirty-log``: what it prints, its exit status, and one line for bad input."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chance import until_met
from guestmem.cli import main
from guestmem.compare import dirty_log

pytestmark = [pytest.mark.slow, pytest.mark.compiled_only, pytest.mark.timeout(900)]  # all may be to compile

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--memory", "8M", "--repeat", "1", "--iterations", "1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Status, output and errors of the command."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(["dirty-log", *arguments])
        return status, *capsys.readouterr()

    return call


def test_tables_and_json_of_one_run(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    more = os.cpu_count() or 1
    command = (*SMALL, "--vcpus", f"1,{more + 1}", "--design", "split+bbm2", "--json", str(file))

    def caught(_: int) -> tuple[str, str, dict[str, Any]] | None:
        status, out, err = run(*command)
        figures = json.loads(file.read_text())
        assert not any(row["lost"] for row in figures["rows"] if not row["broken"])
        lost = [row["lost"] for row in figures["rows"] if row["broken"]]
        assert status == (0 if any(lost) else 3)
        return (out, err, figures) if all(lost) else None

    out, err, figures = until_met(caught, "writes beside a log that is taken without a flush, for each count of vCPUs")
    assert err.startswith("guestmem: 4 rows of 1 runs; ")
    assert [(row["design"], row["vcpus"]) for row in figures["rows"]] == [
        (name, count) for name in ("split+bbm2", "unflushed") for count in (1, more + 1)
    ]
    for wanted in ("What was lost", "How long it took", "What it did", f" {more + 1}* ", "strong enough", "8 MiB"):
        assert wanted in out, wanted
    assert "unflushed (broken)" in out
    assert "\x1b[" not in out
    assert max(map(len, out.splitlines())) < 250


def test_json_alone_on_standard_output(run: Run) -> None:
    status, out, _ = run(*SMALL, "--vcpus", "1", "--design", "demand+lazy", "--arch", "arm64", "--json", "-")
    figures = json.loads(out)
    assert status == (0 if figures["strong_enough"] else 3)
    assert figures["arch"] == "arm64"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*SMALL, "--design", "magic"], "'magic' is not one of demand+lazy"),
        ([*SMALL, "--vcpus", "0"], "0 vCPUs"),
        (["--memory", "lots"], "'lots' is not a size such as 64M"),
        (["--memory", "3M"], "multiple of 2 MiB"),
        (["--memory", "900000G"], "4 MiB..16 GiB"),
        (["--iterations", "0"], "0"),
        (["--json", "/nonexistent/x.json"], "no such folder"),
        ([*SMALL, "--engine", "kvm"], "--engine"),
        ([*SMALL, "--slow-vcpu", "3"], "--slow-vcpu"),
        (["trace.log"], "trace.log"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Run, arguments: list[str], says: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("guestmem: ")
    assert err.count("\n") == 1
    assert says in err


def test_ctrl_c_ends_with_what_was_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
    real = dirty_log.compare_dirty_log

    def pressed_later(**options: Any) -> Any:
        timer.start()  # the command looks for it by now
        return real(**options)

    monkeypatch.setattr(dirty_log, "compare_dirty_log", pressed_later)
    status, out, err = run(*SMALL[:2], "--design", "lazy", "--repeat", "100000")
    timer.join()
    assert status == 130
    assert err.startswith("guestmem: 12 rows of 100000 runs; ")
    assert "interrupted" in out
    assert "load: not shown to be strong enough" in out
