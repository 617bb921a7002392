"""``guestmem compare --engine kvm``: the tables of the software engine, every design that this kernel can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chance import until_met
from guestmem.cli import main
from guestmem.designs import DESIGNS
from guestmem.engines.kvm import KvmEngine, unusable

pytestmark = [pytest.mark.compiled_only, pytest.mark.timeout(900)]  # both engines and all designs may be to compile
BOOT = str(Path(__file__).parents[2] / "examples" / "traces" / "pc-seabios-smp2.log")
QUICK = ("--vcpus", "1", "--repeat", "1", "--interval", "0.2")
TABLES = ("What vCPUs saw", "What it cost", "What the updates did, a replay")
needs_kvm = pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")


def columns(out: str) -> list[list[str]]:
    """Names of the columns of each table: the first line below its title that says anything."""
    lines = out.splitlines()
    found = []
    for title in TABLES:
        below = [line for line in lines[lines.index(title) + 1 :] if line.strip()]
        found.append(below[0].split())
    return found


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["compare", BOOT, *QUICK, *arguments])
    return status, capsys.readouterr().out


@needs_kvm
def test_both_engines_tables_have_the_same_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outs, keys = [], []
    for engine in ("soft", "kvm"):
        file = tmp_path / engine
        status, out = measured(capsys, "--engine", engine, "--design", "pause", "--json", str(file))
        assert status in {0, 3}
        outs.append(columns(out))
        figures = json.loads(file.read_text())
        keys.append((figures.keys(), figures["rows"][0].keys(), figures["rows"][0]["counts"].keys()))
        assert ("host: " in out) == (engine == "kvm")
    assert outs[0] == outs[1]
    assert [len(table) > 8 for table in outs[0]] == [True] * 3
    assert keys[0] == keys[1]


@needs_kvm
def test_every_design_that_this_kernel_can_do_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    able = [design.name for design in DESIGNS if not design.needs & ~KvmEngine.capabilities]
    assert set(able) >= {"sequential", "pause", "pause_if_overlap", "exit_retry"}

    def inside_each(number: int) -> list[dict[str, Any]] | None:
        """A vCPU that is kept from its core makes no access meanwhile, whatever is updated."""
        status, out = measured(capsys, "--engine", "kvm", "--json", "-", "--repeat", str(1 << min(number, 4)))
        assert status in {0, 3}
        rows: list[dict[str, Any]] = json.loads(out)["rows"]
        assert [row["design"] for row in rows] == able
        return rows if all(row["inside"] for row in rows) else None

    for row in until_met(inside_each, "an access inside an update of each design"):
        if row["design"] in {"pause", "pause_if_overlap", "exit_retry"}:
            assert [row["holes"], row["killed"]] == [0, 0]
        if row["design"] in {"pause", "exit_retry"}:  # else memory that comes can be overwritten: docs/exit-retry.md
            assert [row["lost"], row["wrong"]] == [0, 0]


@needs_kvm
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--design", "atomic"], "design atomic: engine kvm cannot UPDATE"),
        (["--arch", "arm64"], "arm64"),
        (["--slow-vcpu", "3"], "engine kvm cannot keep a vCPU inside the kernel"),
    ],
)
def test_what_it_cannot_do_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", BOOT, *QUICK, "--engine", "kvm", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("command", [["compare", BOOT, *QUICK], ["demo", "bios-relocation"]])
def test_without_a_kernel_it_is_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUESTMEM_KVM", "0")
    assert main([*command, "--engine", "kvm"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "guestmem: engine kvm: GUESTMEM_KVM=0 leaves the kernel's KVM alone\n")


def test_counts_of_vcpus_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = measured(capsys, "--vcpus", "2,1,2", "--design", "pause", "--json", "-")
    assert [row["vcpus"] for row in json.loads(out)["rows"] if row["design"] == "pause"] == [1, 2]
