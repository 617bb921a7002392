"""guestmem demo bios-relocation: today's way harms the guest, the others do not; on either engine, in one format."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from guestmem.demo import bios_relocation
from guestmem.engines.kvm import unusable
from guestmem.errors import CapabilityError, UsageError

pytestmark = pytest.mark.compiled_only
ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))]


def run(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "guestmem", "demo", "bios-relocation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_sees_the_hole_or_not(engine: str) -> None:
    for attempt in range(1, 7):  # whether an access falls into a hole is chance
        updates = 400 * attempt
        rows = {row.design: row for row in bios_relocation(engine, updates=updates).rows}
        if rows["sequential"].killed:
            break
    assert set(rows) >= {"sequential", "pause_if_overlap", "exit_retry"}
    assert ("atomic" in rows) == (engine == "soft")
    assert rows["sequential"].harmed
    assert rows["sequential"].killed > 0
    assert 0 < rows["sequential"].first_kill <= updates
    for name, row in rows.items():
        assert row.updates == updates
        assert row.inside > 0
        assert row.harmed == (name == "sequential"), row


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_ten_thousand_updates_harm_nobody(engine: str) -> None:
    names = ["pause_if_overlap", "exit_retry"] + ["atomic"] * (engine == "soft")
    for row in bios_relocation(engine, updates=10_000, designs=names).rows:
        assert row.updates == 10_000
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
