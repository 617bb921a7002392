"""What the load guest and its exits count is what happened: in memory, in every design, on a real boot."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chance import until_met
from guestmem.compare.plan import Plan, plan
from guestmem.compare.replay import replay
from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, Target, measured_engine
from guestmem.engines.kvm import KvmLoadEngine
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.abi import RUN_DATA
from guestmem.engines.kvm.x86.load_guest import ASSEMBLY, CODE_BYTES
from guestmem.engines.load_words import DEVICE_TAG, TAG_BYTE
from guestmem.errors import CapabilityError, UsageError
from guestmem.memslots import Change
from guestmem.traces import read
from kvm_guest import PROGRAMS

TRACES = Path(__file__).parents[2] / "examples" / "traces"
pytestmark = pytest.mark.compiled_only


@pytest.fixture
def steps() -> Iterator[Plan]:
    made = plan(read(TRACES / "pc-seabios-smp2.log"))
    yield made
    made.close()


@pytest.mark.parametrize("pattern", ["random", "sequential", "hot"])
def test_increments_are_in_memory_and_devices_are_devices(pattern: str) -> None:
    memory = HostMemory([(0x7F0000000000, 0x7F0000010000)])
    words = [memory.address + 0x1000 * page + 8 * page for page in range(16)]
    for word in words:
        memory.write(word + 7, b"\xc3")
    with KvmLoadEngine(2) as engine:
        engine.set_access(Access(pattern=pattern, writes=0.4, fetches=0.2))
        engine.set_memory_region(Change(0, 0, 16, memory.address))
        engine.start()
        there = [Target(word - memory.address, word, word) for word in words]
        engine.set_load(Load([*there, Target(0x200000, 0, 0), Target(0x201000, 0, 0)]))

        def each_kind(_: int) -> bool:
            time.sleep(0.1)
            counted = engine.vcpu_counts()
            kinds = ("reads", "writes", "fetches", "mmio_reads", "mmio_writes")
            return all(any(counts[kind] for counts in counted) for kind in kinds)

        until_met(each_kind, "an access of each kind")
        engine.set_load(Load())
        engine.stop()
        every = engine.vcpu_counts()
    total = {name: sum(counts[name] for counts in every) for name in every[0]}
    assert total["writes"] == sum(memory.word(word) & (1 << 56) - 1 for word in words) > 0
    assert total["reads"] > 0
    assert total["fetches"] > 0
    assert total["mmio_reads"] > 0
    assert total["mmio_writes"] > 0
    assert total["holes_read"] == total["holes_write"] == total["killed_fetches"] == total["strange"] == 0
    assert total["inside"] == 0
    memory.close()


def test_a_device_answers_what_no_memory_holds() -> None:
    """With increments, also the write that follows has its tag; a fetch finds a ``ret``."""
    with KvmLoadEngine(1) as engine:
        engine.set_access(Access(writes=1.0, fetches=0.0))
        engine.start()
        engine.set_load(Load([Target(0x200000, 0, 0)]))
        until_met(lambda _: engine.vcpu_counts()[0]["mmio_writes"] > 0 or None, "a write to a device")
        engine.stop()
        run = int(engine.vm.vcpus[0].words[int(at.RUN)])
        data = ctypes.string_at(run + int(RUN_DATA), 8)
    assert data[int(TAG_BYTE) :] == bytes([int(DEVICE_TAG), 0xC3])


@pytest.mark.parametrize(("tag", "counted"), [(int(DEVICE_TAG), "strange"), (0, "stale")])
def test_overwritten_memory_is_not_taken_for_old(tag: int, counted: str) -> None:
    """What was written from a device's answer is neither old nor new; without its tag it would look like old."""
    memory = HostMemory([(0x7F0000000000, 0x7F0000001000)])
    word = memory.address
    memory.write(word + int(TAG_BYTE), bytes([tag, 0xC3]))
    with KvmLoadEngine(1) as engine:
        engine.set_access(Access(writes=0.0, fetches=0.0))
        engine.start()
        engine.set_load(Load([Target(0x200000, 0, word, changed=True, old_tag=0, new_tag=5)]))
        with engine.window():
            engine.set_memory_region(Change(0, 0x200, 1, memory.address))
        until_met(lambda _: engine.vcpu_counts()[0][counted] > 0 or None, f"an access that counts as {counted}")
        engine.set_load(Load())
        engine.stop()
        counts = engine.vcpu_counts()[0]
    assert {name for name in ("strange", "stale") if counts[name]} == {counted}
    memory.close()


ACCESS = {"pause": Access(), "pause_if_overlap": Access(writes=0.0), "exit_retry": Access()}
"""No increments beside vCPUs that run: one may overwrite memory that comes (benchmarks/add_beside_increments.py)."""


@pytest.mark.parametrize("design", ["pause", "pause_if_overlap", "exit_retry"])
def test_a_boot_without_failures(steps: Plan, design: str) -> None:
    def met(number: int) -> bool:
        """Whether vCPUs had their turn: one that is kept from its core is at nothing while memory is updated."""
        repeat = 4 << min(number, 4)
        with measured_engine("kvm", 2) as engine:
            row = replay(steps, find(design), engine, access=ACCESS[design], repeat=repeat, interval_s=0.001)
        assert row.transactions == 11 * repeat
        assert row.failures == 0
        assert row.counts.pauses == (row.transactions if design == "pause" else row.counts.pauses)
        if design == "exit_retry":
            assert row.counts.pauses == 0
        return row.inside > 0 and row.accesses > 1000

    until_met(met, "accesses inside an update")


def test_todays_way_is_caught(steps: Plan) -> None:
    def fell_into_holes(_: int) -> bool:
        with measured_engine("kvm", 2) as engine:
            row = replay(steps, find("sequential"), engine, access=Access(), repeat=10, interval_s=0.001)
        assert row.lost >= 0
        return bool(row.holes and row.killed)

    until_met(fell_into_holes, "accesses and fetches that fell into a hole")


def test_what_cannot_be_measured_is_no_zero(steps: Plan) -> None:
    with measured_engine("kvm", 1) as engine:
        row = replay(steps, find("pause"), engine, access=Access(), repeat=1, interval_s=0).as_dict()
    assert row["refused"] is None
    assert row["refaults"] is None
    assert row["counts"]["swaps"] is None
    assert row["lost"] == 0
    assert row["counts"]["pauses"] == 11


@pytest.mark.slow
@pytest.mark.timeout(900)  # a try takes minutes where the machine has much else to do
def test_the_command_prints_the_host_and_dashes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "guestmem", "compare", str(TRACES / "pc-seabios-smp2.log"), "--engine", "kvm"]
    arguments = ["--vcpus", "2", "--json", str(tmp_path / "figures.json"), "--design", "exit_retry"]

    def strong_enough(number: int) -> subprocess.CompletedProcess[str] | None:
        repeat = ["--repeat", str(20 << min(number, 4))]
        done = subprocess.run([*command, *arguments, *repeat], capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode in {0, 3}, done.stdout
        assert (done.returncode == 3) == ("load: TOO WEAK" in done.stdout)
        return done if done.returncode == 0 else None

    done = until_met(strong_enough, "an access that sequential harmed")
    assert "host: Linux " in done.stdout
    assert "engine kvm cannot measure it" in done.stdout
    assert "load: strong enough (sequential was caught" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["design"] for row in figures["rows"]] == ["exit_retry", "sequential"]
    assert figures["control"] == "sequential"


def test_what_the_kernel_engine_cannot_do_is_one_line() -> None:
    with pytest.raises(UsageError, match="x86 guests only"):
        measured_engine("kvm", 1, arch="arm64")
    with pytest.raises(UsageError, match="inside the kernel"):
        measured_engine("kvm", 1, slow_vcpu_ns=1)
    with pytest.raises(CapabilityError, match="address spaces"):
        measured_engine("kvm", 1, address_spaces=9)
    with pytest.raises(UsageError, match="soft, kvm"):
        measured_engine("xen", 1)


@pytest.mark.no_kvm
@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs GNU as and objcopy")
@pytest.mark.parametrize("name", ["load guest", *PROGRAMS])
def test_bytes_are_what_the_assembly_says(name: str, tmp_path: Path) -> None:
    assembly, code = (ASSEMBLY, CODE_BYTES) if name == "load guest" else PROGRAMS[name][1:]
    (tmp_path / "x.s").write_text(f".intel_syntax noprefix\n{assembly}\n")
    subprocess.run(["as", "--64", "x.s", "-o", "x.o"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "x.o", "x.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "x.bin").read_bytes() == code
