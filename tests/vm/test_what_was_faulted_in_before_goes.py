"""Memory that is taken away before any vCPU has run has no translation left that it was faulted in with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.abi import MemoryIoctl, MemoryRegion
from guestmem.engines.soft.pre_fault import pre_fault_memory
from guestmem.memslots import Change, ChangeKind
from guestmem.vm import Vm

PAGE = 4096


@pytest.mark.parametrize(
    "take_away", [lambda vm: vm.memory.delete(0), lambda vm: vm.memory.resize(0, 4 * PAGE)], ids=["delete", "resize"]
)
def test_it_goes(take_away: Callable[[Vm], object]) -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        pre_fault_memory(vm.engine, 0, 0, 8 * PAGE)
        table = vm.engine.stage2.tables[0]
        assert table.lookup(6 * PAGE) is not None
        take_away(vm)
        assert table.lookup(6 * PAGE) is None


def test_it_goes_if_it_was_faulted_in_while_the_slot_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look whether there may be translations is before the change: what came in between was made from the slot."""
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        table, apply = vm.engine.stage2.tables[0], vm.engine.memslots.apply

        def faulted_in_before(change: Change) -> ChangeKind:
            pre_fault_memory(vm.engine, 0, 0, 8 * PAGE)
            assert table.lookup(6 * PAGE) is not None
            return apply(change)

        monkeypatch.setattr(vm.engine.memslots, "apply", faulted_in_before)
        vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, MemoryRegion(slot=0).pack())
        assert vm.engine.slot(0) is None
        assert table.lookup(6 * PAGE) is None
