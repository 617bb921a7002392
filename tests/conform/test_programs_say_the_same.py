"""A divergence becomes a Python script and a C program that run by themselves and end with 1 while it is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guestmem.abi.checks import Host
from guestmem.conform.calls import ARENA, BUFFER, Answer, Call
from guestmem.conform.emit import as_python
from guestmem.conform.emit_c import as_c
from guestmem.conform.run import Answers, Divergence, ask_model
from guestmem.engines.kvm.device import unusable

CALLS = [
    Call("cap", (192, 0, 4096)),
    Call("home"),
    Call("region", (0, 1, 0, 0x3000, ARENA)),
    Call("guest_memfd", (0x2000, 0)),
    Call("region2", (1, 4, 1 << 20, 0x1000, ARENA, 0x1000, 3, 1)),
    Call("region2", (2, 4, 1 << 21, 0x1000, ARENA, 0, 1, 0)),
    Call("write", (0, 4)),
    Call("write", (0x2000, 1)),
    Call("read", (0x4000, 3)),
    Call("harvest"),
    Call("reset"),
    Call("get_log", (0, 0, BUFFER)),
    Call("mmu_pages", (63,)),
    Call("extension", (10,)),
    Call("vcpu", (1,)),
    Call("bad_pointer", (0x4020AE46,)),
    Call("unknown", (0xAEFE,)),
]
LOGGED = [
    Call("home"),
    Call("region", (0, 1, 0, 0x3000, ARENA)),
    Call("write", (0x1000, 1)),
    Call("clear_log", (0, 3, 0, BUFFER, 1)),
    Call("get_log", (0, 0, BUFFER)),
]


FULL = [
    Call("cap", (192, 0, 4096)),
    Call("home"),
    Call("region", (0, 1, 0, 0x100000, ARENA)),
    Call("write", (0, 200)),
]
SECOND = [
    Call("cap", (192, 0, 4096)),
    Call("home"),
    Call("second"),
    Call("region", (0, 1, 0, 0x8000, ARENA)),
    Call("write", (0, 3)),
    Call("write2", (0x2000, 3)),
    Call("read2", (0x9000, 2)),
    Call("harvest"),
    Call("harvest2"),
]
REFUSED = [Call("home"), Call("region", (0, 0, 0, 0x3000, 0x1000)), Call("write", (0, 1))]
NAMES = ["all", "log", "full", "efault", "ring", "second"]
RING = CALLS[: CALLS.index(Call("harvest")) + 1]
PROGRAMS = [CALLS, LOGGED, FULL, REFUSED, RING, SECOND]


def divergence(calls: list[Call], *, wrong: bool) -> Divergence:
    """As if a kernel had answered the last call otherwise; ``wrong``: as if the model had expected something else."""
    right: Answers = ask_model(Host(), calls)
    last = right[-1]
    assert last is not None
    different = last._replace(exits=last.exits[1:]) if last.exits else Answer(-5)
    other = [*right[:-1], different]
    return Divergence(tuple(calls), tuple(other if wrong else right), tuple(right if wrong else other))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.skipif(not Path("/usr/include/linux/kvm.h").exists(), reason="no <linux/kvm.h>")
@pytest.mark.parametrize("calls", PROGRAMS, ids=NAMES)
def test_the_c_program(calls: list[Call], tmp_path: Path) -> None:
    for wrong in (False, True):
        source, program = tmp_path / "d.c", tmp_path / "d"
        source.write_text(as_c(divergence(calls, wrong=wrong), "a kernel"))
        flags = ["-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True)
        if unusable():
            continue
        result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        assert result.returncode == int(wrong), result.stdout
        assert all(str(call) in result.stdout for call in calls)
        assert ("model:" in result.stdout) is wrong


@pytest.mark.skipif(bool(unusable()), reason=unusable())
@pytest.mark.parametrize("calls", PROGRAMS, ids=NAMES)
def test_the_python_script(calls: list[Call], tmp_path: Path) -> None:
    for wrong in (False, True) if calls is CALLS else (True,):  # a process of Python each
        script = tmp_path / "d.py"
        script.write_text(as_python(divergence(calls, wrong=wrong), "a kernel"))
        result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        assert result.returncode == int(wrong), result.stdout + result.stderr
        assert ("model:" in result.stdout) is wrong


def model_log() -> bytes:
    """The log of the last of LOGGED: a word, of a slot of three pages."""
    last = ask_model(Host(), LOGGED)[-1]
    assert last is not None
    return last.log[:8]


def test_it_says_what_diverges() -> None:
    text = as_python(divergence(LOGGED, wrong=False), "Linux 9.9")
    assert text.startswith('"""Linux 9.9\nanswers call 5 of 5, get_log(')
    assert "with EIO;" in text
    assert f"guestmem's model of KVM answers 0, log {model_log().hex()}." in text
    assert as_c(divergence(LOGGED, wrong=False), "Linux 9.9").startswith("/*\n * Linux 9.9\n * answers call 5 of 5")
