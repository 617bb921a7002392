"""Ctrl-C ends a run with what was done until then, wherever the signal comes: in a callback of the collector, too."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
    ended = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 130, ended.stdout + ended.stderr
    assert ended.stdout.startswith("interrupted; until then:\n")
    assert ended.stderr == ""
