"""An object whose ``__del__`` changes a VM does so before or after a change of it, and never hangs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guestmem.engines.kvm import unusable
from guestmem.vm import Vm

PAGE = 0x1000
ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))]


class Region:
    """Deletes its slot when it goes."""

    def __init__(self, vm: Vm) -> None:
        self.vm, self.itself = vm, self
        vm.memory.create(5, gpa=0x80000, size=PAGE)

    def __del__(self) -> None:
        self.vm.memory.delete(5)


@pytest.fixture
def collector() -> Iterator[None]:
    """As soon as anything is made, the collector runs."""
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


def in_the_midst(vm: Vm, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Have ``do`` run in the midst of the next change of a slot; whether slot 5 was there after it."""
    seen: list[bool] = []
    memslots, real = vm.memory.memslots, type(vm.memory.memslots).apply

    def apply(*arguments: Any, **named: Any) -> Any:
        if not seen:
            seen.append(True)
            do()
            seen[0] = vm.memory.get(5) is not None
        return real(memslots, *arguments, **named)

    if vm.model is not None:
        monkeypatch.setattr(vm.model, "_apply", apply)
    monkeypatch.setattr(memslots, "apply", apply)
    return seen


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("collector")
def test_the_collector_does_not_run_in_the_midst(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Vm(engine=engine) as vm:
        vm.memory.create(0, gpa=0, size=PAGE)
        gc.disable()
        Region(vm)  # a cycle, which nobody holds
        seen = in_the_midst(vm, lambda: [[] for _ in range(1000)], monkeypatch)
        gc.enable()
        with vm.memory.changing():
            gc_was_on = gc.isenabled()
            vm.memory.create(1, gpa=0x10000, size=PAGE)
        gc.collect()
        assert seen == [True]
        assert not gc_was_on
        assert gc.isenabled()
        assert vm.memory.get(5) is None
        assert vm.memory.get(1) is not None
        vm.check()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_change_within_a_change_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is no cycle, ``__del__`` runs at once: it hears why, and nothing is half done."""
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: said.append(str(error.exc_value)))
    with Vm(engine=engine) as vm:
        vm.memory.create(0, gpa=0, size=PAGE)
        region: list[Region] = [Region(vm)]
        del region[0].itself
        seen = in_the_midst(vm, region.clear, monkeypatch)
        vm.memory.create(1, gpa=0x10000, size=PAGE)
        assert seen == [True]
        assert said == ["EBUSY: vm: this thread is changing it already (was that an object's __del__?)"]
        vm.check()
        vm.memory.delete(5)
        assert [slot.id for slot in vm.memory] == [0, 1]
