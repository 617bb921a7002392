"""While a map changes beneath running vCPUs, one instant explains all that they read: pages of several ranges, RAM that
becomes MMIO and comes back, what moves, grows, or comes to the front. What was there is the painter's word. An update
made call by call is found out, each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.engines.kvm.device import unusable
from guestmem.history import Judgement, Reading, Verdict, accesses_of, judge
from guestmem.vm import Hlt, Read, Vm
from map_painter import Painter

needs_kvm = pytest.mark.skipif(bool(unusable()), reason=unusable())
ENGINES = ["soft", pytest.param("kvm", marks=needs_kvm)]
PAGE, BASE, PAGES = 0x1000, 0x10000, 6
LOAD = bytes.fromhex("8edb 66a10000 f4")  # mov ds, bx; mov eax, [0]; hlt
NOTHING = 0
CHANGES = ("replace", "move", "resize", "priority")


def stamp(memory: Any, region: Any) -> None:
    """Each page of its host memory begins with the region's number and the page's."""
    content = memory.memory_of(region)
    for page in range(len(content) // PAGE):
        content[page * PAGE : page * PAGE + 4] = (region.number << 8 | page).to_bytes(4, "little")


class Machine:
    """Six pages of RAM beneath what a step changes; a vCPU that reads one page at a time, with its interval.

    ``versions``: what each page reads as before and after the step, by the painter.
    """

    def __init__(self, vm: Vm, change: str = "replace") -> None:
        self.vm, self.kvm, self.change = vm, vm.engine.name == "kvm", change
        self.painter = Painter()
        memory = vm.map
        if self.kvm:
            self.put(memory.ram("code", BASE), -BASE // PAGE)
            for vcpu in vm.vcpus:
                vcpu.load_code(LOAD, PAGE * (1 + vcpu.index))
        self.put(memory.ram("old", PAGES * PAGE), 0)
        if change == "replace":
            new = memory.ram("new", PAGES * PAGE)
            stamp(memory, new)
            self.windows = [self.put(memory.alias(f"{page}", new, page * PAGE, PAGE), page, 1) for page in (1, 4)]
            port = memory.mmio("port", PAGE)
            port.read = lambda offset, size: port.number << 8
            self.windows.append(self.put(port, 5, 2))
            self.turn(False)
        elif change == "move":
            self.moving = self.put(memory.ram("moving", 2 * PAGE), 1, 1)
        elif change == "resize":
            self.growing = self.put(self.box(4), 1, 1)
            self.growing.set_size(PAGE)
        else:
            self.under = self.put(self.box(3), 1, 1)
            self.put(memory.ram("over", 3 * PAGE), 2, 2)
        self.versions = {page: [value] for page, value in self.painted().items()}
        self.step()
        for page, value in self.painted().items():
            self.versions[page].append(value)
        self.back()
        self.changing = [page for page, (before, after) in self.versions.items() if before != after]

    def put(self, region: Any, page: int, priority: int = 0) -> Any:
        system = self.vm.map.system
        if region.backed:
            stamp(self.vm.map, region)
        system.add_subregion(BASE + page * PAGE, region, priority)
        self.painter.add(system, region)
        return region

    def box(self, pages: int) -> Any:
        """RAM and, after two pages, ROM: no slot can hold both."""
        memory = self.vm.map
        box = memory.container("box", pages * PAGE)
        for page, region in enumerate((memory.ram("in it", 2 * PAGE), memory.rom("rom", (pages - 2) * PAGE))):
            stamp(memory, region)
            box.add_subregion(2 * page * PAGE, region)
            self.painter.add(box, region)
        return box

    def painted(self) -> dict[int, int]:
        cells = self.painter.paint(self.vm.map.system)
        return {
            page: cells[BASE // PAGE + page][0].number << 8 | cells[BASE // PAGE + page][1] for page in range(PAGES)
        }

    def turn(self, on: bool) -> None:
        with self.vm.map.transaction():
            for each in self.windows:
                each.set_enabled(on)

    def again(self, region: Any) -> None:
        """``region`` is the last added of its priority now."""
        self.painter.remove(self.vm.map.system, region)
        self.painter.add(self.vm.map.system, region)

    def step(self, on: bool = True) -> None:
        """One update of several ranges: pages 1 and 4 become other memory and page 5 MMIO, or what ``change`` says."""
        if self.change == "replace":
            self.turn(on)
        elif self.change == "move":
            self.moving.set_address(BASE + (3 if on else 1) * PAGE)
            self.again(self.moving)
        elif self.change == "resize":
            self.growing.set_size((4 if on else 1) * PAGE)
        else:
            self.under.set_priority(3 if on else 1)
            self.again(self.under)

    def back(self) -> None:
        self.step(False)

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
                for page in self.machine.changing:
                    self.found[index].append(self.machine.read(index, page))
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            self.errors.append(error)

    def wait_for_more(self) -> None:
        """Until each has read each page once more, from now on."""
        wanted = [len(each) + 2 * len(self.machine.changing) for each in self.found]
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
@pytest.mark.parametrize("change", CHANGES)
def test_one_instant_explains_all_reads(change: str, way: str, engine: str) -> None:
    with Vm(2, engine=engine) as vm:
        vm.map.way = way
        machine = Machine(vm, change)
        assert len(machine.changing) > 1
        for index in (0, 1):  # what is compiled when it is first called is compiled now
            machine.step()
            machine.read(index, 5)
            machine.back()
        for _ in range(8 if change == "replace" else 3):
            found = seen(machine, 2)
            assert found.verdict is Verdict.PASS, found
            assert found.old
            assert found.new
            machine.back()


@pytest.fixture
def call_by_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], list[Reading]]:
    """Make a step by the design that does nothing against holes, with a read of every page after each call."""

    def step(machine: Machine) -> list[Reading]:
        found: list[Reading] = []

        def look() -> None:  # there and back: whichever page is late is read after one that is early
            found.extend(machine.read(0, page) for page in (*machine.changing, *reversed(machine.changing)))

        engine: Any = machine.vm.engine
        real = engine.set_memory_region

        def watched(change: Any) -> Any:
            kind = real(change)
            look()
            return kind

        machine.vm.map.design = "sequential"
        look()
        monkeypatch.setattr(engine, "set_memory_region", watched)
        machine.step()
        monkeypatch.setattr(engine, "set_memory_region", real)
        look()
        return found

    return step


@pytest.mark.compiled_only
@pytest.mark.parametrize("change", CHANGES)
def test_an_update_made_call_by_call_is_found_out(
    change: str, call_by_call: Callable[[Machine], list[Reading]]
) -> None:
    with Vm() as vm:
        machine = Machine(vm, change)
        found = judge(accesses_of(call_by_call(machine), machine.versions))
        assert found.verdict is Verdict.FAIL
        assert found.witness


def test_a_read_of_what_is_no_memory_is_a_read_of_what_never_was() -> None:
    found = judge(accesses_of([Reading(0, 1, 1, NOTHING, "vCPU 0")], {1: [0x101, 0x201]}))
    assert found.reason == "vCPU 0 saw what was never there"
