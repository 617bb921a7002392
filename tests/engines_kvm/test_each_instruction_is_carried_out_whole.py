"""Whatever instruction meets the hole of an update: what it leaves in registers and memory is what it leaves without.

Each runs twice on the same state: with its memory there, natively; and with slot 1 gone until the vCPU has met the
hole. Nothing is left to chance, and the oracle is the processor.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvm_instructions import INSTRUCTIONS, TAKEN_FOR_OTHERS
from kvm_window import NOWHERE, Window, died

pytestmark = pytest.mark.compiled_only


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_it_has_the_effect_that_it_has_without_an_update(kind: str) -> None:
    for assembly, code in INSTRUCTIONS[kind].items():
        with Window() as guest:
            guest.engine.retry_exits(True)
            guest.prepare(bytes.fromhex(code))
            native = guest.run()
            assert died(native.exit), assembly
            assert native.registers["rip"] == NOWHERE, assembly
            guest.prepare(bytes.fromhex(code))
            assert guest.run_in_a_hole() == native, assembly
            counts = guest.counts()
            assert counts["retried_answers"] + counts["retried_fetches"] > 0, assembly


def test_all_that_the_emulator_does_not_know_runs_natively_after_the_update() -> None:
    """Those that have read before it gave up, too: an exit other than MMIO leaves the lock, and is looked at."""
    cmpxchg16b = INSTRUCTIONS["locked"]["mov rdi, rbx; lock cmpxchg16b [rdi]"]
    popcnt = INSTRUCTIONS["read-modify-write"]["popcnt rax, [rbx]"]
    for code in (cmpxchg16b, popcnt):
        with Window() as guest:
            guest.engine.retry_exits(True)
            guest.prepare(bytes.fromhex(code))
            assert guest.run_in_a_hole().registers["rip"] == NOWHERE
            counts = guest.counts()
            if not counts["retried_fetches"]:
                pytest.skip("this kernel's emulator knows it")
            assert counts["retried_fetches"] == 1
            with guest.engine.exits_held():  # nobody has kept the lock
                pass


@pytest.mark.no_kvm
@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs GNU as and objcopy")
def test_bytes_are_what_the_assembly_says(tmp_path: Path) -> None:
    known = {name: code for kind in [*INSTRUCTIONS.values(), TAKEN_FOR_OTHERS] for name, code in kind.items()}
    text = [".intel_syntax noprefix"]
    for number, name in enumerate(known):
        text.append(re.sub(r"\b([ef])(?=:|;|\]|$)", rf"\g<1>{number}", name))  # labels, each of one text
    (tmp_path / "x.s").write_text("\n".join(text) + "\n")
    subprocess.run(["as", "--64", "x.s", "-o", "x.o"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "x.o", "x.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "x.bin").read_bytes() == bytes.fromhex("".join(known.values()))
