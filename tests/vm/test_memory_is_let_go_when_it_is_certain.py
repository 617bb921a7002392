"""Host memory is let go when it is certain that nothing reaches it: no slot of the kernel's, no access under way."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from guestmem.engines.kvm import unusable
from guestmem.errors import BatchError
from guestmem.vm import Hlt, Mmio, Read, Vm, Write
from kernel_slots import kernel_ids
from meetings import meanwhile

PAGE = 0x1000
GPA = 0x8000
needs_kvm = pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
ENGINES = ["soft", pytest.param("kvm", marks=needs_kvm)]


class Given:
    """A buffer of pages that tells whether anybody keeps it."""

    def __init__(self, pages: int) -> None:
        memory: Any = np.frombuffer(mmap.mmap(-1, pages * PAGE), np.uint8)
        self.address = int(memory.ctypes.data)
        self._memory: Any = memory
        self._alive = weakref.ref(memory)

    def take(self) -> Any:
        """The buffer, once: from then on it is whose it is given to."""
        memory, self._memory = self._memory, None
        return memory

    @property
    def kept(self) -> bool:
        gc.collect()
        return self._alive() is not None


def machine(engine: str, pages: int = 4) -> tuple[Vm, Given]:
    """A VM with memory at 0, and slot 1 at ``GPA`` on memory that is watched."""
    vm, given = Vm(engine=engine), Given(pages)
    vm.memory.create(0, gpa=0, size=0x4000)
    vm.memory.create(1, gpa=GPA, size=pages * PAGE, host=given.take())
    return vm, given


def by_call(vm: Vm, host: Any) -> None:
    vm.memory.create(2, gpa=0x40000, size=PAGE, host=host)


def by_transaction(vm: Vm, host: Any) -> None:
    with vm.memory.transaction() as change:
        change.create(2, gpa=0x40000, size=PAGE, host=host)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("made", [by_call, by_transaction])
def test_a_buffer_that_owns_nothing_keeps_what_it_lies_in(engine: str, made: Callable[[Vm, Any], None]) -> None:
    vm, given = machine(engine)
    with vm:
        made(vm, (ctypes.c_char * PAGE).from_address(given.address + PAGE))
        vm.memory.delete(1)
        assert given.kept
        vm.memory.delete(2)
        assert not given.kept


@pytest.mark.parametrize("access", [Write(GPA, b"x"), Read(GPA, 1)])
def test_an_access_of_the_software_engine_keeps_memory(access: Any) -> None:
    vm, given = machine("soft")
    kept: list[bool] = []

    def end() -> None:
        vm.memory.delete(1)
        kept.append(given.kept)

    at = "host_write" if isinstance(access, Write) else "host_read"
    vm.vcpus[0].load([access])
    meeting = meanwhile(end, at=(at,), call=vm.vcpus[0].run)
    assert meeting.result == Hlt()
    assert kept == [True]
    assert not given.kept
    vm.close()


@pytest.mark.parametrize("access", [Write(GPA + PAGE - 1, b"xyz"), Read(GPA + PAGE - 1, 3)])
def test_a_slot_that_goes_before_the_access_is_not_there(access: Any) -> None:
    """Deleted between the look at it and the access: that is emulated, as if it had come a moment later."""
    vm, given = machine("soft")
    at = "_store" if isinstance(access, Write) else "_load"
    vm.vcpus[0].load([access])
    meeting = meanwhile(lambda: vm.memory.delete(1), at=(at,), call=vm.vcpus[0].run)
    first = meeting.result
    assert isinstance(first, Mmio)
    assert (first.gpa, first.size) == (GPA + PAGE - 1, 1)
    assert not given.kept
    if isinstance(access, Read):
        vm.vcpus[0].answer(first, b"a")
    second = vm.vcpus[0].run()
    assert isinstance(second, Mmio)
    assert (second.gpa, second.size) == (GPA + PAGE, 2)
    vm.close()


@needs_kvm
@pytest.mark.parametrize("where", ["engine", "records"])
@pytest.mark.parametrize("made", [by_call, by_transaction])
def test_what_the_kernel_may_have_is_kept_whatever_fails_after_it(
    made: Callable[[Vm, Any], None], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has made the slot, and then something runs out: of memory, of frames."""
    given = Given(1)
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=0x4000)
        host = given.take()

        def fail(*_arguments: object) -> None:
            raise MemoryError("no more")

        with monkeypatch.context() as patched:
            if where == "engine":
                patched.setattr(vm.engine.vm, "map_insert", fail)
            else:
                patched.setattr(vm.memory.memslots, "apply", fail)
            with pytest.raises((MemoryError, BatchError)):  # a transaction names the entry
                made(vm, host)
        del host
        there = 2 in kernel_ids(vm, range(3))
        assert given.kept or not there
        assert there or made is by_transaction  # which takes it back, where it can
        if there:
            vm.memory.delete(2)
        assert 2 not in kernel_ids(vm, range(3))
        assert not given.kept
