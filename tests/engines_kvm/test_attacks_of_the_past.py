"""Programs that once broke exit_retry and Vm print what they expect, or the verdict refuses beforehand and says why.

They lie beside a checkout (``../shared/data/attacks``); where they do not, this is skipped. With GUESTMEM_WHOLE=1 only:
they take minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ATTACKS = ROOT.parent / "shared" / "data" / "attacks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ATTACKS.is_dir(), reason="../shared/data/attacks is not there"),
    pytest.mark.skipif(os.environ.get("GUESTMEM_WHOLE") != "1", reason="takes minutes: GUESTMEM_WHOLE=1"),
    pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs GNU as and objcopy"),
]
STOPPED = "not on the list of those which KVM emulates as the processor carries them out"
REFUSED = "pause_if_overlap"


def run(program: str, *words: str, status: int = 0) -> str:
    (path,) = ATTACKS.glob(f"{program}_*.py")
    there = {"GUESTMEM_TESTS": str(ROOT / "tests" / "support"), "GUESTMEM_ATTACKS": str(ATTACKS)}
    done = subprocess.run(
        [sys.executable, str(path), *words],
        env={**os.environ, **there},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a2_pusha_is_refused_and_stops_the_bare_design() -> None:
    """The bare design stops the vCPU before anything has landed; the program's own assertion says so."""
    said = run("a2", status=1)
    assert f"compat {REFUSED}: vCPU 0 is in compatibility mode" in said
    assert STOPPED in said


@pytest.mark.parametrize("event", ["int3", "ud2"])
def test_f1_events(event: str) -> None:
    rows = run("f1", event).splitlines()
    assert len(rows) == 6
    for row in rows:
        place, design = row.split()[1:3]
        native, hole = re.findall(r"native (.*?) \| hole: (.*)", row)[0]
        assert design == ("exit_retry" if place in {"nothing", "handler"} else REFUSED)
        assert design == REFUSED or hole == str([native, native])


def test_b2_modes_that_are_emulated_throughout() -> None:
    for row in run("b2", "1").splitlines():
        mode, design = re.findall(r"^(\w+) +design (\w+)", row)[0]
        assert design == ("exit_retry" if mode == "long64" else REFUSED)
        assert int(re.findall(r"LOST (-?\d+)", row)[0]) in (0, -1, -2), "stopped between the store and its count"
        assert row.endswith("ended {}")


def test_c1_rings() -> None:
    rows = run("c1").splitlines()
    assert len(rows) == 6
    assert all(row.endswith("harvest: [(1, 0)]") for row in rows[:4])
    assert all("memory has 42: True" in row and "offset=0" in row for row in rows[4:])


def test_d1_snapshots() -> None:
    rows = run("d1").splitlines()
    assert len(rows) == 4
    assert all(row.count("True") == 1 and "LOST" not in row for row in rows)


def test_e1_zones() -> None:
    for row in run("e1").splitlines():
        kept = row.startswith("nothing")
        assert f"verdict {'exit_retry' if kept else REFUSED};" in row
        assert not kept or "store in memory: True" in row


def test_g1_memory_that_is_not_there() -> None:
    rows = run("g1").splitlines()
    assert len(rows) == 14
    assert all(": exit 0;" in row for row in rows)
    assert all("Bad address" in row for row in rows[:10])


@pytest.mark.parametrize("how", ["sys.exit", "close", "stop", "transaction"])
def test_h1_fork(how: str) -> None:
    assert "child ended; parent's vCPU was interrupted 0 times, running 1" in run("h1", how, "running")


@pytest.mark.parametrize("design", ["pause_if_overlap", "exit_retry", "pause"])
def test_i1_ctrl_c(design: str) -> None:
    assert run("i1", "20", design).startswith("20 of 20 nothing wrong")


def test_j1_tables() -> None:
    rows = [row for row in run("j1").splitlines() if row.startswith("T is used")]
    assert len(rows) == 2
    assert all(f"{REFUSED}: vCPU 0 has a page table at 0x26000" in row for row in rows)


def test_k1_half_a_transaction() -> None:
    said = run("k1")
    assert said.count("BatchError") == said.count("changed: False") == 2


def test_n1_readers() -> None:
    rows = run("n1", "2").splitlines()
    assert [row.split()[0] for row in rows] == ["kvm", "soft"], "and no line of exceptions"


@pytest.mark.parametrize("design", ["exit_retry", "pause"])
def test_u1_16_bytes(design: str) -> None:
    said = run("u1", "2", design)
    assert "TORN 0 (0, 0) ended {}" in said
