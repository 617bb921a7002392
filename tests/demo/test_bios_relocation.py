"""guestmem demo bios-relocation: today's way harms the guest, the others do not; on either engine, in one format."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chance import until_met
from guestmem.cli import main
from guestmem.demo import Scene, SceneRow, bios_relocation
from guestmem.demo.bios_relocation import _counted
from guestmem.engines.kvm import unusable
from guestmem.engines.load_words import DEVICE_TAG, TAG_BYTE
from guestmem.errors import CapabilityError, UsageError
from guestmem.report.demo import print_scene
from slices import sliced

pytestmark = pytest.mark.compiled_only
UPDATES = sliced(1_000, 10_000)
ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))]


def run(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "guestmem", "demo", "bios-relocation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.timeout(900)  # a try takes minutes where the machine has much else to do
@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_sees_the_hole_or_not(engine: str) -> None:
    def shown(attempt: int) -> tuple[int, dict[str, SceneRow]] | None:
        updates = 400 * min(attempt + 1, 8)
        rows = {row.design: row for row in bios_relocation(engine, updates=updates).rows}
        today = rows["sequential"]
        met = today.killed and today.holes and today.lost and all(row.inside for row in rows.values())
        return (updates, rows) if met else None

    updates, rows = until_met(shown, "a fetch, a read and a write that fell into the hole")
    seen = rows["sequential"]
    assert set(rows) >= {"sequential", "pause_if_overlap", "exit_retry"}
    assert ("atomic" in rows) == (engine == "soft")
    assert rows["sequential"].harmed
    assert min(seen.killed, seen.holes, seen.lost) > 0
    assert seen.lost <= seen.writes
    assert 0 < rows["sequential"].first_kill <= updates
    for name, row in rows.items():
        assert row.updates == updates
        assert row.inside > 0
        assert row.harmed == (name == "sequential"), row


def test_a_word_that_a_device_overwrote_counts_what_came_after() -> None:
    """KVM may write an increment of what no memory answered over memory that comes back meanwhile."""
    device = 0xC3 << 56 | int(DEVICE_TAG) << 8 * int(TAG_BYTE)
    assert _counted([0xC3 << 56 | 7, device + 5]) == 12


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_many_updates_harm_nobody(engine: str) -> None:
    names = ["pause_if_overlap", "exit_retry"] + ["atomic"] * (engine == "soft")
    for row in bios_relocation(engine, updates=UPDATES, designs=names).rows:
        assert row.updates == UPDATES
        assert not row.harmed, row


def test_the_command_prints_a_table() -> None:
    status, out, err = run("--updates", "50", "--design", "pause_if_overlap")
    assert (status, err) == (0, "")
    assert "pause_if_overlap: nothing lost, nobody died, over 50 updates" in out
    assert "increments lost" in out
    assert "\x1b[" not in out


def test_the_command_prints_json() -> None:
    status, out, _ = run("--updates", "20", "--design", "sequential", "--json")
    assert status == 0
    scene = json.loads(out)
    assert scene["engine"] == "soft"
    assert scene["rows"][0]["updates"] == 20
    assert scene["rows"][0]["update_median_ns"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_says_what_happened_under_each_design(engine: str) -> None:
    status, out, err = run("--engine", engine, "--updates", "60", *(["--design", "sequential"] * 2))
    assert (status, err) == (0, "")
    told = [line.strip() for line in out.splitlines() if line.startswith("  sequential: ")]
    assert len(told) == 1
    # A read that met no memory may have been made again where memory had come back: then nothing else has happened.
    seen = ("met no memory", "vCPU 1 died", "increments were lost")
    assert ("the guest saw the hole" in told[0]) == any(what in told[0] for what in seen)
    assert [line for line in out.splitlines() if line != line.rstrip()] == []
    assert ("host: Linux" in out) == (engine == "kvm")


def test_each_row_in_words() -> None:
    rows = [
        SceneRow("sequential", updates=9, writes=5, inside=7, holes=3, lost=2, killed=4, first_kill=1),
        SceneRow("sequential_answered", updates=9, inside=7, answered=6),
        SceneRow("pause", updates=9),
    ]
    stream = io.StringIO()
    print_scene(Scene("soft", "", 9, rows, interrupted=True), stream=stream)
    first, second, third, last = stream.getvalue().splitlines()[-4:]
    for says in ("saw the hole", "3 accesses met no memory", "2 increments were lost", "died 4 times", "update 1"):
        assert says in first
    assert second == "  sequential_answered: nothing lost, nobody died, over 9 updates; 6 exits were answered"
    assert third == "  pause: no access fell inside an update, so its zeros show nothing"
    assert last == "interrupted: the last row holds what happened so far"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_ends_with_what_happened(engine: str) -> None:
    command = [sys.executable, "-m", "guestmem", "demo", "bios-relocation", "--engine", engine, "--updates", "10000000"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's threads would be counted below
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    threads = Path(f"/proc/{process.pid}/task")
    deadline = time.monotonic() + 600
    while len(list(threads.iterdir())) < 3 and time.monotonic() < deadline:  # it imports and compiles before that
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (130, "")
    assert "  sequential: " in out
    assert out.endswith("interrupted: the last row holds what happened so far\n")


def test_a_group_without_a_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "\n  bios-relocation " in err


@pytest.mark.parametrize("arguments", [["--engine", "xen"], ["--design", "magic"], ["--updates", "0"]])
def test_bad_input_is_one_line_and_status_2(arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("guestmem: ")
    assert err.count("\n") == 1


def test_what_cannot_be_meant_raises() -> None:
    with pytest.raises(UsageError, match="updates: 0"):
        bios_relocation(updates=0)
    if not unusable():
        with pytest.raises(CapabilityError, match="atomic: engine kvm cannot UPDATE"):
            bios_relocation("kvm", updates=1, designs=["atomic"])
