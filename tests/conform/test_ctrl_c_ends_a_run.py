"""Ctrl-C ends a run with what was done until then, wherever the signal comes: in a callback of the collector, too."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from guestmem.abi.checks import Host
from guestmem.cli import main
from guestmem.conform.against import conform_against
from guestmem.conform.calls import Answer, Call
from guestmem.conform.emit import heading
from guestmem.conform.kernel import Kernel, KernelVm
from guestmem.conform.log import write_block, write_header
from guestmem.conform.run import Answers, ask_model, conform
from guestmem.engines.kvm.device import unusable

IN_A_CALLBACK = """
import gc, os, signal, sys
from guestmem.cli import main
from guestmem.conform.log import KernelSide

vms = 0
def answers(side, calls, expected, real=KernelSide.answers):
    global vms
    vms += 1
    if vms == 40:
        gc.callbacks.append(press)
        gc.collect()
    return real(side, calls, expected)

def press(phase, info):  # what an exception raised in here comes to, Python prints, and goes on
    gc.callbacks.remove(press)
    signal.raise_signal(signal.SIGINT)
    for _ in range(1000):
        pass

KernelSide.answers = answers
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["conform", "--steps", "4000000"]))
"""


@pytest.mark.skipif(bool(unusable()), reason=unusable())
def test_a_signal_in_a_callback_of_the_collector() -> None:
    """With a handler that raises there, a traceback is printed, and the run goes on for 4,000,000 calls."""
    program = [sys.executable, "-c", IN_A_CALLBACK]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 130, ended.stdout + ended.stderr
    assert ended.stdout.startswith("interrupted; until then:\n")
    assert ended.stderr == ""


@pytest.mark.skipif(bool(unusable()), reason=unusable())
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_second_one_among_the_files(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was compared before it is said."""

    def pressed_twice(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("guestmem.conform.gmem_files.conform_files", pressed_twice)
    assert main(["conform", "--steps", "200", *more]) == 130
    out = capsys.readouterr().out
    assert json.loads(out)["interrupted"] if more else out.startswith("interrupted; until then:\n")


@pytest.mark.skipif(bool(unusable()), reason=unusable())
def test_what_was_cut_off_is_closed_all_the_same() -> None:
    """Where Ctrl-C comes while an exit is decoded, its frame looks at the vCPU's page."""
    with Kernel() as kernel:
        gc.collect()  # what other tests left closes now
        before = len([*Path("/proc/self/fd").iterdir()])
        vm = KernelVm(kernel)
        vm.answer(Call("home"))
        look = memoryview(vm._guests[0].run)
        vm.close()
        look.release()
        del vm  # and with it what could not be unmapped
        gc.collect()
        assert len([*Path("/proc/self/fd").iterdir()]) <= before


class Wrong:
    """Answers each extension with 7, from the first on; Ctrl-C comes with the n-th question, and the one after."""

    name = "a kernel that answers otherwise"

    def __init__(self, first: int, second: int = 1 << 60) -> None:
        self.asked, self.first, self.second = 0, first, second

    def pressed(self) -> bool:
        return self.asked >= self.first

    def answers(self, calls: Sequence[Call], expected: Answers) -> Answers:
        self.asked += 1
        if self.asked >= self.second:
            raise KeyboardInterrupt
        wrong = Answer(7)
        return [wrong if call.kind == "extension" else each for call, each in zip(calls, expected, strict=True)]


MANY = [Call("mmu_pages", (number,)) for number in range(60)] + [Call("extension", (3,)), Call("reset")]


@pytest.mark.no_kvm
@pytest.mark.parametrize("first", [1, 3, 8])
def test_while_a_divergence_is_made_shorter_it_is_shown_as_short_as_it_is(first: int) -> None:
    side = Wrong(first)
    outcome = conform(Host(), side, steps=10, blocks=lambda *_: [MANY], pressed=side.pressed)
    found = outcome.divergence
    assert found is not None
    assert found.interrupted
    assert outcome.interrupted
    assert found.calls[-1] == Call("extension", (3,))
    assert len(found.calls) <= 61
    assert first > 3 or len(found.calls) > 1
    assert side.asked <= first + 3
    assert any("Ctrl-C ended the search" in line for line in heading(found, side.name))


@pytest.mark.no_kvm
@pytest.mark.parametrize("second", [2, 3, 5])
def test_a_second_one_does_not_lose_it(second: int) -> None:
    side = Wrong(1, second)
    outcome = conform(Host(), side, steps=10, blocks=lambda *_: [MANY], pressed=lambda: False)
    assert outcome.divergence is not None
    assert outcome.divergence.interrupted
    assert outcome.divergence.calls[-1] == Call("extension", (3,))
    assert side.asked == second


@pytest.mark.no_kvm
def test_left_alone_it_is_made_short() -> None:
    side = Wrong(1 << 60)
    outcome = conform(Host(), side, steps=10, blocks=lambda *_: [MANY])
    assert outcome.divergence is not None
    assert not outcome.divergence.interrupted
    assert len(outcome.divergence.calls) == 1


def logged(path: Path) -> Path:
    """A log of the model's answers to MANY."""
    with path.open("w") as log:
        write_header(log, str(Host().version.name), "the model", Host())
        write_block(log, MANY, ask_model(Host(), MANY))
    return path


@pytest.mark.no_kvm
@pytest.mark.parametrize(("first", "second"), [(1, 1 << 60), (3, 1 << 60), (1, 2), (1, 4)])
def test_nor_does_a_comparison_with_a_log(first: int, second: int, tmp_path: Path) -> None:
    """A first Ctrl-C while its divergence is made shorter, or a second."""
    side = Wrong(first, second)
    outcome = conform_against(Host(), side, logged(tmp_path / "log"), side.pressed if second > 100 else lambda: False)
    assert outcome.divergence is not None
    assert outcome.divergence.interrupted
    assert outcome.interrupted
    assert outcome.divergence.calls[-1] == Call("extension", (3,))
    assert side.asked <= (first + 4 if second > 100 else second)
