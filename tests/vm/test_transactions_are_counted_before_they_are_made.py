"""A transaction that would wrap the total of pages, or underflow it, names its entry and changes no memory."""

from __future__ import annotations

import errno

import pytest

from guestmem import BatchError
from guestmem.vm import Vm

PAGE = 0x1000


@pytest.mark.parametrize("design", ["atomic", "sequential", "pause", "batch"])
def test_a_wrap_names_its_entry_and_changes_nothing(design: str) -> None:
    with Vm(word_bits=32) as vm:
        slot = vm.memory.create(0, gpa=0, size=4 * PAGE, flags=1)
        vm.model.accounting.pages = (1 << 32) - 3
        wraps = pytest.raises(BatchError, match="slot 2: a total of 0x100000001 pages would wrap a word of 32")
        with wraps as caught, vm.memory.transaction(design=design) as change:
            change.move(0, 64 * PAGE)
            change.create(1, gpa=0, size=2 * PAGE)
            change.create(2, gpa=1 << 20, size=2 * PAGE)
        assert (caught.value.errno, caught.value.entry) == (errno.EINVAL, 2)
        assert list(vm.memory) == [slot]
        assert vm.model.accounting.pages == (1 << 32) - 3
        with vm.memory.transaction(design=design) as change:  # never more than fits
            for _ in range(3):
                change.create(1, gpa=1 << 20, size=2 * PAGE)
                change.delete(1)
        with vm.memory.transaction(design=design) as change:  # what goes before makes room
            change.delete(0)
            change.create(2, gpa=1 << 20, size=6 * PAGE)
        assert vm.model.accounting.pages == (1 << 32) - 1
        vm.model.accounting.pages = 6
        vm.check()


def test_an_underflow_is_eio_and_the_slot_stays() -> None:
    with Vm() as vm:
        slot = vm.memory.create(0, gpa=0, size=4 * PAGE)
        vm.model.accounting.pages = 3
        with pytest.raises(BatchError, match="would underflow") as caught, vm.memory.transaction() as change:
            change.delete(0)
        assert (caught.value.errno, caught.value.entry) == (errno.EIO, 0)
        assert list(vm.memory) == [slot]
        vm.model.accounting.pages = 4
        vm.check()
