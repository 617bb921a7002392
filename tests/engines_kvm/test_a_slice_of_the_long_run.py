"""The long run of benchmarks/long_exit_retry.py, in small: every transaction is met, nothing is lost, controls lose."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import guestmem
from chance import until_met
from slices import sliced

pytestmark = pytest.mark.compiled_only
FILE = Path(__file__).parents[2] / "benchmarks" / "long_exit_retry.py"
ENOUGH = 8


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("long_exit_retry", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["lock inc", "lock cmpxchg16b", "movdqa, one stores and one loads", "call, ret"])
def test_nothing_is_lost(kind: str) -> None:
    row = script().play(kind, "exit_retry", ENOUGH, 60.0)
    assert row.inside >= ENOUGH
    assert row.lost == 0


@pytest.mark.slow
def test_of_any_kind() -> None:
    long = script()
    for kind in list(long.KINDS)[:: sliced(6, 1)]:
        row = long.play(kind, "exit_retry", ENOUGH, 60.0)
        assert row.lost == 0, row
        assert row.inside >= ENOUGH, row


def test_sequential_loses() -> None:
    long = script()

    def loses(_: int) -> Any:
        row = long.until_lost("lock inc", "sequential", 200, 60.0)
        return row if row.lost else None

    row = until_met(loses, "an access that fell into a hole")
    assert row.updates < 200, "a control ends when it has lost"


def test_a_control_that_loses_nothing_ends_by_its_transactions() -> None:
    row = script().until_lost("lock inc", "exit_retry", 3, 60.0, vcpus=2)
    assert (row.updates, row.lost) == (3, 0)


@pytest.mark.no_kvm
def test_each_rule_has_one_place_in_production() -> None:
    long = script()
    assert long.CONTROLS.keys() == long.RULES.keys()
    for path, old, new in long.RULES.values():
        text = (Path(guestmem.__file__).parent / path).read_text()
        assert text.count(old) == 1, path
        compile(text.replace(old, new), path, "exec")


@pytest.mark.no_kvm
@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs GNU as and objcopy")
def test_bytes_are_what_the_assembly_says(tmp_path: Path) -> None:
    for kind in script().KINDS.values():
        for assembly, code in zip(kind.assembly.split(" | "), kind.code, strict=True):
            text = assembly.replace("; ", "\n")
            (tmp_path / "x.s").write_text(f".intel_syntax noprefix\n.code64\n{text}\n")
            subprocess.run(["as", "--64", "x.s", "-o", "x.o"], cwd=tmp_path, check=True)
            subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "x.o", "x.bin"], cwd=tmp_path, check=True)
            assert (tmp_path / "x.bin").read_bytes().hex() == code, assembly
