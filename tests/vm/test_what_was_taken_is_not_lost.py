"""Ctrl-C in a call that takes something away (entries of a ring, a log, an exit): who calls again gets it.

At every instruction of it, as ``test_ctrl_c_at_every_place.py``. And of several threads one takes at a time.
"""

from __future__ import annotations

import dis
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from guestmem.engines.kvm import unusable
from guestmem.vm import Hlt, Vm, Write
from guestmem.vm.vcpu import SoftVcpu
from interrupt_sweep import Place, places

ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))]
PAGES = range(4)
CODE = bytes.fromhex("c606005001 c606006002 c606007003 c606008004 f4".replace(" ", ""))  # mov byte [page], n; hlt


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def is_handed_out(place: Place, *functions: Any) -> bool:
    """At the instruction that returns from one of these: CPython looks for no signals there, and a tracer's is late."""
    return any(
        place.function == function.__qualname__ and step.offset == place.offset and step.opname == "RETURN_VALUE"
        for function in functions
        for step in dis.get_instructions(function)
    )


def machine(engine: str, *, rings: bool) -> Vm:
    vm = Vm(engine=engine, ring_entries=1024 if rings else 0)
    vm.memory.create(0, gpa=0, size=0x2000)
    vm.memory.create(1, gpa=0x5000, size=0x4000, flags=1)
    return vm


def write_each(vm: Vm) -> None:
    """The guest writes to each page of slot 1."""
    if vm.engine.name == "kvm":
        vm.vcpus[0].load_code(CODE, 0x1000)
    else:
        vm.vcpus[0].load([Write(0x5000 + 0x1000 * page, b"x") for page in PAGES])
    assert vm.vcpus[0].run() == Hlt()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_harvest(engine: str) -> None:
    with machine(engine, rings=True) as vm:
        got: list[int] = []

        def harvest() -> None:
            got.extend(entry.offset for entry in vm.harvest())

        write_each(vm)
        harvest()
        vm.reset_dirty_rings()
        got.clear()
        done = 0
        write_each(vm)
        for place, raised in places(harvest):
            done += raised
            harvest()
            assert sorted(got) == [*PAGES] or (is_handed_out(place, Vm.harvest) and not got), place
            vm.reset_dirty_rings()
            got.clear()
            write_each(vm)
        assert done > 20


@pytest.mark.parametrize("engine", ENGINES)
def test_a_log(engine: str) -> None:
    with machine(engine, rings=False) as vm:
        got: set[int] = set()

        def take() -> None:
            got.update(vm.dirty_log(1).nonzero()[0].tolist())

        write_each(vm)
        take()
        done = 0
        got.clear()
        write_each(vm)
        for place, raised in places(take):
            done += raised
            take()
            assert got == {*PAGES} or (is_handed_out(place, Vm.dirty_log) and not got), place
            got.clear()
            write_each(vm)
        assert done > 20


def test_accesses_of_the_software_engine() -> None:
    """Each is carried out, none twice, and the exit at the end is given."""
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=0x2000)
        vcpu = vm.vcpus[0]
        ends: list[object] = []

        def run() -> None:
            ends.append(vcpu.run())

        def load() -> None:
            ends.clear()
            vm.memory.write(0, bytes(0x200))
            vcpu.load([Write(page, b"x") for page in range(0x100)] + [Write(0x9000, b"y")])

        load()
        run()
        done = 0
        load()
        for place, raised in places(run):
            done += raised
            if not ends:
                run()
            assert vm.memory.read(0, 0x101) == b"x" * 0x100 + b"\0", place
            assert [type(end).__name__ for end in ends] == ["Mmio"] or is_handed_out(place, SoftVcpu.run), place
            load()
        assert done > 20


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("floor", ["vm", "vcpu"])
def test_one_thread_harvests_at_a_time(engine: str, floor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another that comes meanwhile waits, and gets what came since."""
    if (engine, floor) == ("soft", "vcpu"):
        pytest.skip("its vCPUs have no harvest of their own")
    with machine(engine, rings=True) as vm:
        harvest = vm.harvest if floor == "vm" else vm.vcpus[0].vcpu.harvest  # type: ignore[attr-defined]
        owner: Any = vm._now if floor == "vm" else vm.engine.vm.answered  # type: ignore[union-attr]
        plain, others, waited = owner.harvest, list[Any](), list[bool]()

        def meet(*args: Any) -> Any:
            if waited:
                return plain(*args)
            waited.append(False)
            found = plain(*args)
            thread = threading.Thread(target=lambda: others.extend(harvest()), daemon=True)
            thread.start()
            thread.join(0.3)
            waited[0] = thread.is_alive()
            threads.append(thread)
            return found

        threads: list[threading.Thread] = []
        write_each(vm)
        monkeypatch.setattr(owner, "harvest", meet)
        assert len(harvest()) == len(PAGES)
        threads[0].join()
        assert (waited, others) == ([True], [])
        assert vm.reset_dirty_rings() == len(PAGES)
