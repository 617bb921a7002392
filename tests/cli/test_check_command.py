"""guestmem check: what it prints, its exit status, and its JSON."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from guestmem import traces
from guestmem.check import check
from guestmem.cli import main
from guestmem.report.check import print_report

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "traces"
BOOT = str(EXAMPLES / "pc-seabios-smp2.log")
QUIET = "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000 ua=0x1000 ret=0\n"
HOLE = (
    QUIET
    + "7@2.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x0 ua=0x1000 ret=0\n"
    + "7@2.001000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x4000 ua=0x1000 ret=0\n"
)
INSIDE = "  CPU 0/KVM-9 [000] d..1. 1.9: kvm_entry: vcpu 0, rip 0x0\n  CPU 0/KVM-9 [000] d..1. 3.0: kvm_exit: vcpu 0\n"
OUTSIDE = (
    INSIDE.replace(" 1.9:", " 0.9:").replace(" 3.0:", " 0.95:")
    + INSIDE.replace(" 3.0:", " 3.1:").replace(" 1.9:", " 3.0:")
).replace("kvm_exit: vcpu 0", "kvm_exit: vcpu 0 reason EXTERNAL_INTERRUPT rip 0x0")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("quiet", QUIET), ("hole", HOLE), ("inside", INSIDE), ("outside", OUTSIDE), ("empty", "")):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_boot_is_summed_up_and_every_window_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", BOOT]) == 0
    out = capsys.readouterr().out
    assert "35 changes (22 create, 13 delete) in 11 transactions; 0 other lines" in out
    assert "6 holes: 6 unknown; longest 414 µs, lines 3-7, [0x0, 0x10000000) 256 MiB" in out
    assert "run state: not in this trace" in out
    (row,) = [line for line in out.splitlines() if line.startswith("10-16")]
    assert re.split(r"  +", row) == [
        "10-16",
        "21671",
        "329 µs",
        "[0xc0000, 0x10000000) 255.25 MiB",
        "partly other",
        "10, 13-14: split, re-host",
        "unknown",
    ]
    assert "11-12, 15-16: split, merge, re-host" in out


def test_piped_output_is_plain_and_no_row_wraps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", BOOT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    assert all(line == line.rstrip() for line in lines)
    assert sum(bool(re.match(r"\d+-\d+ ", line)) for line in lines) == 6


@pytest.mark.parametrize(
    ("columns", "row"), [(200, r"10-16 +21671 +329"), (60, r"lines 10-16, thread 21671, missing for 329")]
)
def test_a_terminal_gets_a_table_if_it_is_wide_enough(columns: int, row: str) -> None:
    report = check(traces.read(BOOT))
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        print_report(report, stream=stream)
    shown = b""
    while True:
        try:
            shown += os.read(controller, 65536)
        except OSError:  # the other end is closed
            break
        if len(shown) > 1_000_000:
            break
    os.close(controller)
    text = re.sub(r"\x1b\[[\d;]*m", "", shown.decode())
    assert re.search(row, text)
    assert "would have to be atomic" in text


@pytest.mark.parametrize(
    ("arguments", "status", "verdict"),
    [
        (["quiet"], 0, "no hole"),
        (["quiet", "--fail-on", "hole"], 0, "no hole"),
        (["hole"], 0, "1 unknown"),
        (["hole", "--fail-on", "hole"], 1, "1 unknown"),
        (["hole", "--fail-on", "open"], 0, "1 unknown"),
        (["hole", "--run-state", "inside"], 0, "1 open"),
        (["hole", "--run-state", "inside", "--fail-on", "open"], 1, "1 open"),
        (["hole", "--run-state", "inside", "--fail-on", "hole"], 1, "1 open"),
        (["hole", "--run-state", "outside", "--fail-on", "hole"], 0, "1 closed"),
        (["hole", "--run-state", "outside", "--fail-on", "open"], 0, "1 closed"),
        (["hole", "--run-state", "outside", "--run-state-offset", "-1.05", "--fail-on", "open"], 1, "1 open"),
        (
            ["hole", "--gap", "0.5", "--fail-on", "hole"],
            1,
            "come back after 1000 µs: a slow transaction or two? --gap 1 joins",
        ),
        (["hole", "--gap", "2", "--fail-on", "hole"], 1, "1 unknown"),
    ],
)
@pytest.mark.usefixtures("files")
def test_exit_status(arguments: list[str], status: int, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) == status
    assert verdict in capsys.readouterr().out


def test_an_open_hole_names_the_vcpu(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "hole", "--run-state", "inside"])
    out = capsys.readouterr().out
    assert "open: vCPU 0 (thread 9) in the guest" in out
    assert "run state: 1 vCPU, 2 events, from kvm_entry and kvm_exit" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty"], "empty: the file is empty"),
        (["missing"], "missing: cannot be read: No such file or directory"),
        (["."], ".: cannot be read: Is a directory"),
        (["inside"], "inside: no memslot event in 2 lines (it tells when"),
        (["hole", "--gap", "-1"], "gap"),
        (["hole", "--gap", "nan"], "gap"),
        (["hole", "--gap", "soon"], "soon"),
        (["hole", "--vm", "x"], "x"),
        (["hole", "--vm", "8"], "hole: no memslot change of thread 8; there are some of thread 7"),
        (["hole", "--fail-on", "sometimes"], "sometimes"),
        (["hole", "--limit", "-1"], "-1"),
        (["hole", "--run-state", "quiet"], "quiet: no vCPU enters or leaves"),
        (["hole", "--run-state", "inside", "--run-state-offset", "100"], "not the same clock?"),
        (["hole", "--run-state", "inside", "--run-state-offset", "nan"], "run_state_offset"),
        (["-", "--run-state", "-"], "standard input"),
        ([], "TRACE"),
        (["hole", "hole"], "hole"),
        (["hole", "--unknown"], "--unknown"),
    ],
)
@pytest.mark.usefixtures("files")
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err
    assert captured.err.startswith("guestmem: ")


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(HOLE.encode())))
    assert main(["check", "-", "--fail-on", "hole"]) == 1
    assert capsys.readouterr().out.startswith("<stdin>: qemu trace")


def test_limit_says_how_many_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", BOOT, "--limit", "2"])
    out = capsys.readouterr().out
    assert "… and 4 more" in out
    assert "\n10-16" not in out


def test_json_has_the_documented_form(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", BOOT, "--json", "--fail-on", "hole"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "guestmem-check-1"
    assert report["verdicts"] == {"open": 0, "closed": 0, "unknown": 6}
    hole = report["holes"][2]
    assert (hole["first_line"], hole["last_line"], hole["bytes"]) == (10, 16, (1 << 28) - 0xC0000)
    assert hole["frames"] == [{"gpa": 0xC0000, "size": (1 << 28) - 0xC0000}]
    assert [each["primitives"] for each in hole["atomic_sets"]] == [["split", "re-host"], ["split", "merge", "re-host"]]
    assert main(["check", "hole", "--run-state", "inside", "--json"]) == 0
    opened = json.loads(capsys.readouterr().out)
    assert opened["holes"][0]["vcpus"] == [{"thread": 9, "index": 0}]
    assert main(["check", "hole", "--gap", "0.5", "--json"]) == 0
    late = json.loads(capsys.readouterr().out)
    assert late["late"][0]["why"] == "pause"
    assert main(["check", str(EXAMPLES / "pc-migration.log"), "--json"]) == 0
    migration = json.loads(capsys.readouterr().out)
    (files / "logged").write_text(QUIET.replace("flags=0x0", "flags=0x1") + HOLE.splitlines(keepends=True)[1])
    assert main(["check", "logged", "--json"]) == 0
    logged = json.loads(capsys.readouterr().out)
    assert logged["remarks"][0]["lint"] == "dirty-log-lost"
    used = (
        (keys(report) | keys(opened) | keys(late) | keys(migration) | keys(logged))
        - set(report["changes"])
        - set(report["verdicts"])
    )
    documented = set(re.findall(r"^\s*\| `(\w+)` \|", (ROOT / "docs" / "traces.md").read_text(), re.MULTILINE))
    assert used == documented, "docs/traces.md names the keys that are there"


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | set().union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m guestmem check {BOOT} --json | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], [BOOT, "--json"]])
def test_the_command_loads_no_array_library(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom guestmem.cli import main\n"
        f"status = main(['check', *{arguments!r}])\n"
        "loaded = {'numpy', 'numba', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
