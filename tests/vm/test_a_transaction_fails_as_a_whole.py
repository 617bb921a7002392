"""A change or transaction on the kernel is carried out, or nothing has changed: refused at each call in turn.

Where taking back is refused, too, what stays is what kernel, engine and memory all have, and nothing that a guest can
reach is unmapped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from guestmem.designs import DESIGNS
from guestmem.engines.kvm import KvmEngine, unusable
from guestmem.errors import GuestmemError
from guestmem.vm import Vm
from kernel_slots import Injector, agree

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")

IDS, PAGES = range(8), range(0x60)
CARRIED_OUT = [design.name for design in DESIGNS if not design.needs & ~KvmEngine.capabilities]
"""Designs that this kernel can do."""
MOST = 60
"""Calls that a transaction may make before a test gives up on it."""


def machine() -> Vm[KvmEngine, None]:
    """A 64-bit user in slot 0, which stays; 1 logs; 2 moves; 3 goes; 6 has its logging changed."""
    vm = Vm(1, engine="kvm")
    memory = vm.memory
    memory.create(0, gpa=0, size=0x30000)
    memory.create(1, gpa=0x40000, size=0x8000, flags=1)
    memory.create(2, gpa=0x50000, size=0x4000)
    memory.create(3, gpa=0x30000, size=0x4000)
    memory.create(6, gpa=0x38000, size=0x2000)
    for slot in list(memory)[1:]:
        memory.write(slot.base_gfn << 12, bytes([slot.id + 1]) * 0x2000)
    vm.vcpus[0].load_code(b"\xf4", 0x1000, mode="long", tables=0x2000)
    return vm


def everything(vm: Vm[KvmEngine, None], design: str) -> None:
    """Each kind of change: split with a log, new memory, re-host, move, flags, create and delete."""
    with vm.memory.transaction(design=design) as update:
        host = update.delete(1)
        update.create(1, gpa=0x40000, size=0x4000, host=host, flags=1)
        update.create(4, gpa=0x44000, size=0x4000, host=host + 0x4000, flags=1)
        update.move(2, 0x52000)
        update.delete(3)
        update.create(3, gpa=0x30000, size=0x6000)
        update.set_flags(6, 1)
        update.create(5, gpa=0x58000, size=0x2000)


def contents(vm: Vm[KvmEngine, None]) -> list[tuple[object, bytes]]:
    return [(slot, vm.memory.read(slot.base_gfn << 12, slot.npages << 12)) for slot in vm.memory]


@pytest.mark.parametrize("design", CARRIED_OUT)
def test_refused_at_each_call_it_changes_nothing(design: str) -> None:
    refused = 0
    for call in range(MOST):
        with machine() as vm:
            before, error = contents(vm), None
            with Injector(call).on() as injector:
                try:
                    everything(vm, design)
                except GuestmemError as raised:
                    error = raised
            agree(vm, IDS, PAGES)
            if error is None:  # not reached, or a look that can do without
                assert len(vm.memory) == 7
            else:
                refused += 1
                assert contents(vm) == before, f"call {call}: {injector.calls[call]}"
                everything(vm, design)  # nothing stands in its way
                agree(vm, IDS, PAGES)
            if len(injector.calls) <= call:
                break
    assert refused >= 11  # eight changes, a log, new memory twice


@pytest.mark.parametrize("design", CARRIED_OUT)
def test_refused_from_some_call_on_all_agree_on_what_stays(design: str) -> None:
    for call in range(MOST):
        with machine() as vm:
            with Injector(call, MOST).on() as injector, contextlib.suppress(GuestmemError):
                everything(vm, design)
            agree(vm, IDS, PAGES)
            if len(injector.calls) <= call:
                break
    assert call >= 11


@pytest.mark.parametrize("design", CARRIED_OUT)
def test_an_exception_that_does_not_say_what_was_done_is_no_difference(design: str) -> None:
    """As Ctrl-C right behind a system call would be, if signals were not held off."""
    for call in range(MOST):
        with machine() as vm:
            before, raised = contents(vm), False
            injector = Injector(call, error=KeyboardInterrupt)
            injector.after = True
            with injector.on():
                try:
                    everything(vm, design)
                except KeyboardInterrupt:
                    raised = True
            agree(vm, IDS, PAGES)
            if len(injector.calls) <= call:
                break
            assert raised
            assert contents(vm) == before, f"call {call}: {injector.calls[call]}"
    assert call >= 11


CHANGES: dict[str, Callable[[Vm[KvmEngine, None]], object]] = {
    "create": lambda vm: vm.memory.create(4, gpa=0x58000, size=0x4000),
    "create, logging": lambda vm: vm.memory.create(4, gpa=0x58000, size=0x4000, flags=1),
    "delete": lambda vm: vm.memory.delete(3),
    "move": lambda vm: vm.memory.move(2, 0x58000),
    "move onto itself": lambda vm: vm.memory.move(2, 0x52000),
    "logging on": lambda vm: vm.memory.set_flags(6, 1),
    "logging off": lambda vm: vm.memory.set_flags(1, 0),
}


@pytest.mark.parametrize("after", [False, True], ids=["refused", "done, and interrupted"])
@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_made_or_not(change: str, *, after: bool) -> None:
    for call in range(MOST):
        with machine() as vm:
            before = contents(vm)
            injector = Injector(call, error=KeyboardInterrupt if after else None)
            injector.after = after
            with injector.on(), contextlib.suppress(GuestmemError, KeyboardInterrupt):
                CHANGES[change](vm)
            agree(vm, IDS, PAGES)
            if len(injector.calls) <= call:
                break
            if not after:
                assert contents(vm) == before
    assert call


def test_a_log_that_was_taken_is_given_back() -> None:
    """The kernel's log of slot 1 goes with it; it comes back without, and the next look must have the page."""
    code = bytes.fromhex("c606004041f4")  # mov byte [0x4000], 0x41; hlt
    for call in range(MOST):
        with Vm(1, engine="kvm") as vm:
            vm.memory.create(0, gpa=0, size=0x4000)
            vm.memory.create(1, gpa=0x4000, size=0x4000, flags=1)
            vm.vcpus[0].load_code(code, 0x1000)
            vm.vcpus[0].run()
            injector = Injector(call)
            update = vm.memory.transaction(design="pause")
            host = update.delete(1)
            update.create(1, gpa=0x4000, size=0x2000, host=host, flags=1)
            with contextlib.suppress(GuestmemError), injector.on(), update:
                pass
            agree(vm, IDS, range(16))
            dirty = [page.gfn for page in update.dirty]
            if len(injector.calls) <= call:
                assert dirty == [4]
                break
            assert dirty == [], f"call {call}"
            assert vm.dirty_log(1).tolist() == [True, False, False, False], f"call {call}"
    assert call >= 4  # the log, the delete, the create
