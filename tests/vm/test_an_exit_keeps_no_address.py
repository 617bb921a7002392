"""Between two calls of ``run`` the caller changes memory: an access that goes on finds what is there then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.dirty.ring import DirtyEntry
from guestmem.vm import DirtyRingFull, Hlt, MemoryFault, Mmio, Read, Vm, Write

PAGE = 0x1000
PAGES = 1100
CHANGES: dict[str, Callable[[Vm], object]] = {
    "delete": lambda vm: vm.memory.delete(0),
    "move": lambda vm: vm.memory.move(0, PAGES * PAGE),
    "readonly": lambda vm: vm.memory.set_readonly(0, True),
}


def full() -> tuple[Vm, int]:
    """A vCPU that waits for room in its ring, and the page that it is about to write."""
    vm = Vm(ring_entries=1024)
    vm.memory.create(0, gpa=0, size=PAGES * PAGE, flags=1)
    vm.vcpus[0].load([Write(page * PAGE, b"GUESTMEM") for page in range(PAGES)])
    assert vm.vcpus[0].run() == DirtyRingFull()
    assert vm.vcpus[0].run() == DirtyRingFull()
    page = len(vm.harvest())
    vm.reset_dirty_rings()
    return vm, page


@pytest.mark.parametrize("change", CHANGES)
def test_a_write_that_waited_for_room(change: str) -> None:
    vm, page = full()
    with vm:
        whole = vm.memory.view(0, PAGES * PAGE)  # which keeps it
        CHANGES[change](vm)
        assert vm.vcpus[0].run() == Mmio(page * PAGE, 8, True, b"GUESTMEM")
        assert whole[(page - 1) * PAGE : (page - 1) * PAGE + 8].tobytes() == b"GUESTMEM"
        assert not whole[page * PAGE :].any()


def test_a_write_that_waited_finds_the_slot_that_is_there_then() -> None:
    vm, page = full()
    with vm:
        before = vm.memory.view(page * PAGE, PAGE)
        vm.memory.delete(0)
        vm.memory.create(1, gpa=page * PAGE, size=PAGE, flags=1)
        vm.vcpus[0].run()
        assert vm.memory.read(page * PAGE, 8) == b"GUESTMEM"
        assert not before.any()
        assert vm.harvest() == [DirtyEntry(1, 0)]


@pytest.mark.parametrize("write", [False, True])
def test_an_access_that_failed(write: bool) -> None:
    """A private access where memory is shared; then there is none, and then it is private."""
    with Vm(private_memory=True, version="7.4") as vm:
        vm.memory.create(0, gpa=0, size=PAGE)
        access = Write(0, b"x", private=True) if write else Read(0, 1, private=True)
        vm.vcpus[0].load([access])
        assert vm.vcpus[0].run() == MemoryFault(8, 0, PAGE)
        vm.memory.delete(0)
        assert vm.vcpus[0].run() == MemoryFault(8, 0, PAGE)
        file = vm.create_guest_memfd(PAGE)  # whose pages are private
        vm.memory.create(0, gpa=0, size=PAGE, guest_memfd=file)
        assert vm.vcpus[0].run() == Hlt()
