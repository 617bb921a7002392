"""``guestmem compare``: what it prints, its exit status, and one line for input that cannot be meant."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guestmem.cli import main
from guestmem.designs import DESIGNS

COMPILES_S = 800
"""Seconds for a process that may have all designs to compile, on a machine that is busy: a bound, not a promise."""

pytestmark = [pytest.mark.compiled_only, pytest.mark.timeout(COMPILES_S + 100)]

TRACES = Path(__file__).parents[2] / "examples" / "traces"
BOOT = str(TRACES / "pc-seabios-smp2.log")

OVERLAPPING = (
    b"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x2000 ua=0x7f0000000000 ret=0\n"
    b"kvm_set_user_memory Slot#1 flags=0x0 gpa=0x1000 size=0x2000 ua=0x7f0000000000 ret=0\n"
)


def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "guestmem", "compare", *arguments],
        input=stdin,
        capture_output=True,
        timeout=COMPILES_S,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_tables_and_json_of_one_run(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    status, out, err = run(BOOT, "--vcpus", "2", "--repeat", "12", "--design", "atomic", "--json", str(file))
    figures = json.loads(file.read_text())
    # Progress, if it took longer than ten seconds, and what is expected, if that is longer than a minute.
    said = [line for line in err.splitlines() if " so far" not in line and "guestmem: measuring: " not in line]
    assert [line.rpartition(": ")[0] for line in said] == ["guestmem: 2 rows of 12 replays of 11 transactions"]
    assert [row["design"] for row in figures["rows"]] == ["atomic", "atomic_unacknowledged"]
    atomic = figures["rows"][0]
    assert atomic["holes"] == atomic["killed"] == atomic["lost"] == atomic["wrong"] == atomic["stale"] == 0
    assert atomic["replays"] == 12
    assert status == (0 if figures["strong_enough"] else 3)
    assert "What vCPUs saw" in out
    assert "What it cost" in out
    assert "23 September 2022" in out
    assert "Measured elsewhere" in out
    assert ("strong enough" in out) == figures["strong_enough"]
    assert "\x1b[" not in out
    assert max(map(len, out.splitlines())) < 250


def test_json_alone_on_standard_output() -> None:
    status, out, _ = run(BOOT, "--vcpus", "1", "--repeat", "1", "--interval", "0.2", "--design", "pause", "--json", "-")
    assert json.loads(out)["seed"] == 1
    assert status in {0, 3}


def test_a_load_that_is_too_weak_exits_with_3() -> None:
    """No writes, no other vCPU, almost no time: the broken design gets away, and the run says so."""
    empty = b"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f0000000000 ret=0\n"
    status, out, _ = run("-", "--vcpus", "1", "--repeat", "1", "--design", "pause", stdin=empty)
    assert status == 3
    assert "TOO WEAK" in out


def test_more_vcpus_than_cores_are_marked() -> None:
    cores = len(os.sched_getaffinity(0))
    _, out, _ = run(BOOT, "--vcpus", f"{cores + 1}", "--repeat", "1", "--interval", "0.2", "--design", "pause")
    assert f" {cores + 1}* " in out
    assert "more vCPUs than the" in out


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ([BOOT, "--vcpus", "-1"], b"", "-1 vCPUs"),
        ([BOOT, "--vcpus", "two"], b"", "not a list of numbers"),
        ([BOOT, "--vcpus", ""], b"", "not a list of numbers"),
        ([BOOT, "--seed", "abc"], b"", "abc"),
        ([BOOT, "--repeat", "0"], b"", "0"),
        ([BOOT, "--design", "magic"], b"", "'magic' is not one of sequential"),
        ([BOOT, "--writes", "0.8", "--fetches", "0.4"], b"", "more than all accesses"),
        ([BOOT, "--interval", "-1"], b"", "-1"),
        ([BOOT, "--interval", "nan"], b"", "interval: nan ms; 0 to 60000 are allowed"),
        ([BOOT, "--interval", "inf"], b"", "interval: inf ms"),
        ([BOOT, "--slow-vcpu", "nan"], b"", "slow vCPU: nan ms"),
        ([BOOT, "--slow-vcpu", "inf"], b"", "slow vCPU: inf ms"),
        ([BOOT, "--writes", "nan"], b"", "writes: nan"),
        ([BOOT, "--json", "/nonexistent/x.json"], b"", "no such folder"),
        ([BOOT, "--json", str(TRACES)], b"", "a folder"),
        (["/nonexistent.log"], b"", "/nonexistent.log"),
        ([str(TRACES)], b"", "traces"),
        ([str(TRACES / "pc-hotplug-mtree.txt")], b"", "no memslot event"),
        (["-"], b"", "the file is empty"),
        (["-"], b"\x7fELF\0\0\0", "binary"),
        (["-"], b"kvm_set_user_memory Slot#1 flags=0x0 gpa=0x0 size=0x0 ua=0x0 ret=0\n", "slot"),
        (
            ["-"],
            OVERLAPPING,
            ":2:",
        ),
        (["-"], b"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1ffffffffffffffff000 ua=0x0 ret=0\n", ":1:"),
        (["-"], b"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x2", ":1:"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], stdin: bytes, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    assert main(["compare", *arguments]) == 2  # in a process of its own: the test of two VMs
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("guestmem: ")
    assert err.count("\n") == 1
    assert says in err


def test_two_vms_in_one_strace_are_named() -> None:
    line = (
        "1 02:44:27.805574 ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot=0, flags=0, guest_phys_addr=0, "
        "memory_size=4096, userspace_addr=0x7fd1fbe00000}}) = 0\n"
    )
    stdin = (line.format(fd=8) + line.format(fd=11)).encode()
    status, out, err = run("-", stdin=stdin)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "8" in err
    assert "11" in err
    assert "--vm" in err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_ends_with_what_was_measured() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "guestmem", "compare", BOOT, "--design", "pause", "--vcpus", "2", "--repeat", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    # A line of progress that names a number of vCPUs: a transaction has been measured. Before it, things compile.
    try:
        while b" 2 vCPUs; " not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
    except BaseException:
        process.kill()
        raise
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"What it cost" in out
    assert b"interrupted" in out
    assert b"load: " in out


def test_help_names_the_designs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    help_ = capsys.readouterr().out
    assert not [design.name for design in DESIGNS if not design.broken and design.name not in help_]


def test_assumed_slots_are_read_before_anything_is_compiled(tmp_path: Path) -> None:
    file = tmp_path / "slots.json"
    file.write_text('[{"guest_phys_addr": 1, "memory_size": 4096}]')
    status, out, err = run(BOOT, "--assume-slots", str(file))
    assert (status, out) == (2, "")
    assert err == f"guestmem: {file}: entry 0: guest_phys_addr 0x1 is not a multiple of the page size 0x1000\n"
