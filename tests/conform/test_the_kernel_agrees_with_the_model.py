"""This machine's kernel and the model answer random sequences of memory ioctls alike, logs and exits included."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from guestmem.cli import main
from guestmem.conform.kernel import Kernel, host_of
from guestmem.conform.log import KernelSide
from guestmem.conform.promises import PROMISES
from guestmem.conform.run import conform
from guestmem.engines.kvm.device import unusable

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable())


def test_a_short_run_agrees(seed: int) -> None:
    with Kernel() as kernel:
        outcome = conform(host_of(), KernelSide(kernel), steps=6000, seed=seed)
    assert outcome.divergence is None, outcome.divergence
    assert outcome.calls >= 6000
    assert len(outcome.unchecked) < len(PROMISES) / 3, outcome.unchecked


@pytest.mark.slow
def test_a_long_run_agrees_and_speaks_of_every_promise(seed: int) -> None:
    with Kernel() as kernel:
        outcome = conform(host_of(), KernelSide(kernel), steps=40_000, seed=seed + 1)
    assert outcome.divergence is None, outcome.divergence
    assert outcome.unchecked == []


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "kernel.log"
    assert main(["conform", "--steps", "600", "--record", str(log)]) == 0
    text = capsys.readouterr().out
    assert "all answered as by the model" in text
    assert platform.release() in text
    assert main(["conform", "--against", str(log), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["agrees"]
    assert shown["calls"] >= 600
    assert set(shown["promises"]) == {promise.name for promise in PROMISES}
    assert main(["conform", "--minutes", "0.02", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] > 0


def test_another_kernels_answer_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "kernel.log"
    assert main(["conform", "--steps", "600", "--record", str(log)]) == 0
    capsys.readouterr()
    lines = log.read_text().splitlines()
    vm, place, calls = next(
        (vm, place, calls)
        for vm, calls in enumerate(map(json.loads, lines[1:]), 1)
        for place, call in enumerate(calls)
        if call[0] == "region" and call[2] == -22
    )
    calls[place][2] = -17
    lines[vm] = json.dumps(calls)
    log.write_text("\n".join(lines))
    assert main(["conform", "--against", str(log)]) == 1
    assert f"answers call {place + 1} of {place + 1}" in capsys.readouterr().out


def test_without_hypothesis_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert main(["conform", "--steps", "10"]) == 2
    assert "Hypothesis is not installed; pip install 'guestmem[conform]'" in capsys.readouterr().err
