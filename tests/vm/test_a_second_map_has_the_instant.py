"""A device's map beside the slots (vhost's, VFIO's) has the instant of ``atomic``, or how long it was late is told.

That vCPU and device agree in every order is searched in ``explore`` (``production-listener-*``), with mutants.
"""

from __future__ import annotations

import doctest
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from guestmem.engines.kvm import unusable
from guestmem.errors import BatchError, MemslotError
from guestmem.memslots import Effect
from guestmem.vm import MapListener, VhostMap, Vm

PAGE = 0x1000
ROOT = Path(__file__).parents[2]


def table(vm: Vm) -> dict[int, int]:
    """Frames and host addresses of address space 0."""
    return {gfn: slot.hva(gfn) for slot in vm.memory if not slot.as_id for gfn in range(slot.base_gfn, slot.end_gfn)}


def shown(device: VhostMap) -> dict[int, int]:
    return {gfn: host + (gfn - first) * PAGE for first, end, host in device for gfn in range(first, end)}


def test_it_follows_random_changes(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    with Vm(smm=True) as vm:
        vm.memory.create(9, gpa=0x900000, size=8 * PAGE)
        host = vm.memory[9].userspace_addr
        device = VhostMap()
        told = vm.memory.listen(device)
        assert shown(device) == table(vm)
        for number in range(sized(150, 40)):
            slot, as_id = rng.randrange(3), rng.randrange(2)
            gpa, size = PAGE * rng.randrange(24), PAGE * rng.randrange(1, 9)
            with_pages = {"gpa": gpa, "size": size, "host": host, "as_id": as_id}
            there = vm.memory.get(slot, as_id) is not None
            try:
                if rng.random() < 0.3:  # alone: late
                    vm.memory.delete(slot, as_id) if there else vm.memory.create(slot, **with_pages)
                else:
                    with vm.memory.transaction(design=rng.choice(["", "pause", "batch"]), as_id=as_id) as change:
                        if there:
                            change.delete(slot)
                        change.create(slot, **with_pages)
            except MemslotError:
                pass
            assert shown(device) == table(vm), f"round {number}"
        assert told.instants > 0
        assert told.windows > 0
        assert told.waited_ns > 0
        assert told.worst_ns <= told.window_ns
        assert not told.errors
        vm.memory.unlisten(told)
        vm.memory.delete(9)
        assert 0x900 in shown(device)


def test_what_keeps_its_memory_is_no_matter() -> None:
    with Vm() as vm:
        whole = vm.memory.create(0, gpa=0, size=4 * PAGE)
        device = VhostMap()
        told = vm.memory.listen(device)
        vm.memory.split(0, gpa=2 * PAGE, upper=1)
        assert told.instants == told.windows == 0
        with device.access(3 * PAGE + 8) as address:
            assert address == whole.userspace_addr + 3 * PAGE + 8
        with pytest.raises(MemslotError, match="0x4000 is not in the device's table"), device.access(4 * PAGE):
            pass


class Refuses(MapListener):
    """Its map is full."""

    def prepare(self, effects: Sequence[Effect]) -> None:
        raise MemslotError(12, f"device: no room for {len(effects)} ranges")


def test_one_that_refuses_has_changed_nothing() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=4 * PAGE, flags=1)
        device = VhostMap()
        vm.memory.listen(device)
        refuses = vm.memory.listen(Refuses())
        generation = vm.memory.memslots.generation()
        change = vm.memory.transaction()
        change.delete(0)
        change.create(1, gpa=8 * PAGE, size=PAGE)
        with pytest.raises(MemslotError, match="ENOMEM: device: no room for 2 ranges"):
            change.__exit__(None, None, None)
        assert [slot.id for slot in vm.memory] == [0]
        assert vm.memory.memslots.generation() == generation
        assert shown(device) == table(vm)
        assert vm.dirty_log(0).sum() == 0
        vm.check()
        vm.memory.unlisten(refuses)
        vm.memory.delete(0)
        assert shown(device) == {}


def test_a_batch_that_is_refused_is_not_told() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=4 * PAGE)
        device = VhostMap()
        told = vm.memory.listen(device)
        change = vm.memory.transaction()
        change.delete(0)
        change.create(1, gpa=0, size=PAGE, host=0x7000)
        change.create(2, gpa=0, size=PAGE, host=0x7000)
        with pytest.raises(BatchError, match="entry 2"):
            change.__exit__(None, None, None)
        assert (told.instants, told.windows) == (0, 0)
        assert shown(device) == table(vm)


class Late(MapListener):
    """DMA: nothing can wait."""

    waits = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def commit(self, effects: Sequence[Effect]) -> None:
        self.told += [f"{each.action.name} {each.start_gfn}" for each in effects]
        if len(self.told) > 3:
            raise RuntimeError("the device is gone")


def test_one_that_cannot_wait_is_told_late_and_how_late() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=4 * PAGE)
        told = vm.memory.listen(late := Late())
        with vm.memory.transaction() as change:
            host = change.delete(0)
            change.create(0, gpa=0x8000, size=4 * PAGE, host=host)
        assert late.told == ["FILL 0", "STALL 0", "FILL 8"]
        assert (told.instants, told.windows) == (0, 1)
        assert told.worst_ns > 0
        vm.memory.delete(0)
        assert [str(each) for each in told.errors] == ["the device is gone"]
        assert not len(vm.memory)


@pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
def test_on_the_kernel_it_is_late() -> None:
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=4 * PAGE)
        device = VhostMap()
        told = vm.memory.listen(device)
        with vm.memory.transaction() as change:
            host = change.delete(0)
            change.create(1, gpa=0x8000, size=4 * PAGE, host=host)
        assert shown(device) == table(vm)
        assert (told.instants, told.windows) == (0, 1)


def test_the_page_runs() -> None:
    done = doctest.testfile(str(ROOT / "docs" / "atomic-updates.md"), module_relative=False, encoding="utf-8")
    assert done.failed == 0
    assert done.attempted >= 2
