"""While a map changes beneath running vCPUs, one instant explains all that they read: pages of several ranges, RAM that
becomes MMIO and comes back, and what moves. An update made call by call is found out, each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from guestmem.engines.kvm.device import unusable
from guestmem.history import Judgement, Reading, Verdict, accesses_of, judge
from guestmem.vm import Hlt, Read, Vm

needs_kvm = pytest.mark.skipif(bool(unusable()), reason=unusable())
ENGINES = ["soft", pytest.param("kvm", marks=needs_kvm)]
PAGE, BASE, PAGES = 0x1000, 0x10000, 6
LOAD = bytes.fromhex("8edb 66a10000 f4")  # mov ds, bx; mov eax, [0]; hlt
OLD, NEW, CALLBACK, NOTHING = 0x100, 0x200, 0x300, 0


class Machine:
    """Six pages of old RAM, of which a step replaces some; a vCPU that reads one page at a time, with its interval."""

    def __init__(self, vm: Vm) -> None:
        self.vm, self.kvm = vm, vm.engine.name == "kvm"
        memory = vm.map
        if self.kvm:
            memory.system.add_subregion(0, memory.ram("code", BASE))
            for vcpu in vm.vcpus:
                vcpu.load_code(LOAD, PAGE * (1 + vcpu.index))
        self.old, self.new = memory.ram("old", PAGES * PAGE), memory.ram("new", PAGES * PAGE)
        for region, mark in ((self.old, OLD), (self.new, NEW)):
            for page in range(PAGES):
                memory.memory_of(region)[page * PAGE : page * PAGE + 4] = (mark | page).to_bytes(4, "little")
        memory.system.add_subregion(BASE, self.old)
        self.windows = [
            memory.system.add_subregion(BASE + page * PAGE, memory.alias(f"{page}", self.new, page * PAGE, PAGE), 1)
            for page in (1, 4)
        ]
        self.port = memory.mmio("port", PAGE, read=lambda offset, size: CALLBACK | 5)
        memory.system.add_subregion(BASE + 5 * PAGE, self.port, 2)
        self.after_the_step()

    def after_the_step(self) -> None:
        """Back to old RAM everywhere but in page 0, which the step takes away."""
        with self.vm.map.transaction():
            for each in (*self.windows, self.port):
                each.set_enabled(False)
            self.old.set_address(BASE)

    def step(self) -> None:
        """Pages 1 and 4 get other memory, page 5 becomes MMIO: one update of three ranges."""
        with self.vm.map.transaction():
            for each in (*self.windows, self.port):
                each.set_enabled(True)

    versions: ClassVar[dict[int, list[int]]] = {
        page: [OLD | page, NEW | page if page in (1, 4) else CALLBACK | page if page == 5 else OLD | page]
        for page in range(PAGES)
    }

    def read(self, index: int, page: int) -> Reading:
        vcpu, gpa = self.vm.vcpus[index], BASE + page * PAGE
        if self.kvm:
            vcpu.set_registers(rip=PAGE * (1 + index), rbx=gpa >> 4, rax=0xFFFFFFFF)
        else:
            vcpu.load([Read(gpa, 4)])
        begun = time.perf_counter_ns()
        assert self.vm.map.run(vcpu) == Hlt()
        ended = time.perf_counter_ns()
        value = vcpu.registers()["rax"] if self.kvm else int.from_bytes(vcpu.values[0], "little")
        return Reading(begun, ended, page, value & 0xFFFFFFFF, f"vCPU {index}")


class Readers:
    """A thread a vCPU, which reads one changing page after the other until it is told to end."""

    def __init__(self, machine: Machine, vcpus: int) -> None:
        self.machine, self.ended = machine, threading.Event()
        self.found: list[list[Reading]] = [[] for _ in range(vcpus)]
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self.work, args=(index,)) for index in range(vcpus)]

    def work(self, index: int) -> None:
        try:
            while not self.ended.is_set():
                for page in (1, 4, 5):
                    self.found[index].append(self.machine.read(index, page))
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            self.errors.append(error)

    def wait_for_more(self) -> None:
        """Until each has read each page once more, from now on."""
        wanted = [len(each) + 6 for each in self.found]
        deadline = time.monotonic() + 200
        while any(len(each) < want for each, want in zip(self.found, wanted, strict=True)):
            assert not self.errors, self.errors
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def __enter__(self) -> Readers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def seen(machine: Machine, vcpus: int) -> Judgement:
    with Readers(machine, vcpus) as readers:
        readers.wait_for_more()
        machine.step()
        readers.wait_for_more()
    assert not readers.errors, readers.errors
    return judge(accesses_of((reading for each in readers.found for reading in each), machine.versions))


@pytest.mark.compiled_only
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["fewest", "least"])
def test_one_instant_explains_all_reads(engine: str, way: str) -> None:
    with Vm(2, engine=engine) as vm:
        vm.map.way = way
        machine = Machine(vm)
        for index in (0, 1):  # what is compiled when it is first called is compiled now
            machine.step()
            machine.read(index, 5)
            machine.after_the_step()
        for _ in range(8):
            found = seen(machine, 2)
            assert found.verdict is Verdict.PASS, found
            assert found.old
            assert found.new
            machine.after_the_step()


@pytest.fixture
def call_by_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], list[Reading]]:
    """Make a step by the design that does nothing against holes, with a read of every page after each call."""

    def step(machine: Machine) -> list[Reading]:
        found: list[Reading] = []
        engine: Any = machine.vm.engine
        real = engine.set_memory_region

        def watched(change: Any) -> Any:
            kind = real(change)
            found.extend(machine.read(0, page) for page in (1, 4) if not machine.kvm or change.slot)
            return kind

        machine.vm.map.design = "sequential"
        found.extend(machine.read(0, page) for page in (1, 4))
        monkeypatch.setattr(engine, "set_memory_region", watched)
        machine.step()
        monkeypatch.setattr(engine, "set_memory_region", real)
        found.extend(machine.read(0, page) for page in (1, 4))
        return found

    return step


@pytest.mark.compiled_only
def test_an_update_made_call_by_call_is_found_out(call_by_call: Callable[[Machine], list[Reading]]) -> None:
    with Vm() as vm:
        machine = Machine(vm)
        found = judge(accesses_of(call_by_call(machine), machine.versions))
        assert found.verdict is Verdict.FAIL
        assert found.witness


def test_a_read_of_what_is_no_memory_is_a_read_of_what_never_was() -> None:
    found = judge(accesses_of([Reading(0, 1, 1, NOTHING, "vCPU 0")], Machine.versions))
    assert found.reason == "vCPU 0 saw what was never there"
