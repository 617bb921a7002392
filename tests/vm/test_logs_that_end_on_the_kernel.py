"""On /dev/kvm a log goes with its slot: a transaction hands over its dirty pages, the last write included."""

from __future__ import annotations

import errno

import pytest

from guestmem import BatchError, MemslotError
from guestmem.engines.kvm.device import unusable
from guestmem.vm import DirtyPage, Hlt, Vm

pytestmark = [
    pytest.mark.skipif(bool(unusable()), reason=unusable()),
    pytest.mark.compiled_only,
]
PAGE = 0x1000
LOG = 1
# mov byte [0x2000], 7; mov byte [0x3001], 8; hlt
CODE = bytes.fromhex("c606002007 c606013008 f4")


def written(vm: Vm) -> int:
    """A VM whose guest has written pages 2 and 3 of slot 0; returns the slot's host address."""
    vm.memory.create(0, gpa=0, size=8 * PAGE, flags=LOG)
    vm.vcpus[0].load_code(CODE, PAGE)
    assert vm.vcpus[0].run() == Hlt()
    return vm.memory[0].userspace_addr


def test_a_deleted_log_is_handed_over() -> None:
    with Vm(engine="kvm") as vm:
        host = written(vm)
        with vm.memory.transaction() as change:
            held = change.delete(0)
            change.create(1, gpa=0, size=8 * PAGE, host=held, flags=LOG)
        assert change.dirty == [DirtyPage(0, page, host + page * PAGE) for page in (2, 3)]
        assert not vm.dirty_log(1).any()


def test_a_log_switched_off_is_handed_over() -> None:
    with Vm(engine="kvm") as vm:
        host = written(vm)
        with vm.memory.transaction() as change:
            change.set_flags(0, 0)
        assert change.dirty == [DirtyPage(0, page, host + page * PAGE) for page in (2, 3)]


def test_a_log_that_stays_is_not() -> None:
    with Vm(engine="kvm") as vm:
        written(vm)
        with vm.memory.transaction() as change:
            change.move(0, 1 << 20)
        assert change.dirty == []
        assert vm.dirty_log(0).nonzero()[0].tolist() == [2, 3]


def test_a_refused_transaction_takes_no_log() -> None:
    with Vm(engine="kvm") as vm:
        written(vm)
        vm.memory.create(5, gpa=1 << 20, size=PAGE)
        before = list(vm.memory)
        change = vm.memory.transaction()
        with pytest.raises(BatchError, match="entry 1: slot 6: ") as caught, change:  # noqa: PT012 - what raises is the end
            change.delete(0)
            change.create(6, gpa=1 << 20, size=PAGE)
        assert caught.value.errno == errno.EEXIST
        assert (list(vm.memory), change.dirty) == (before, [])
        assert vm.dirty_log(0).nonzero()[0].tolist() == [2, 3]


def test_what_only_the_kernel_refuses_is_taken_back_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    with Vm(engine="kvm") as vm:
        written(vm)
        before = list(vm.memory)
        region = vm.engine.vm.set_user_memory_region

        def without_memory(slot: int, *rest: int) -> None:
            if slot == 6:
                raise MemslotError(errno.ENOMEM, "slot 6")
            region(slot, *rest)

        monkeypatch.setattr(vm.engine.vm, "set_user_memory_region", without_memory)
        change = vm.memory.transaction()
        with pytest.raises(MemslotError) as caught, change:  # noqa: PT012 - what raises is the end of the block
            change.delete(0)
            change.create(6, gpa=1 << 20, size=PAGE)
        assert caught.value.errno == errno.ENOMEM
        assert (list(vm.memory), change.dirty) == (before, [])
        assert vm.dirty_log(0).nonzero()[0].tolist() == [2, 3]
        vm.check()


def test_with_rings_there_is_nothing_to_take() -> None:
    with Vm(engine="kvm", ring_entries=256) as vm:
        written(vm)
        with vm.memory.transaction() as change:
            change.delete(0)
        assert change.dirty == []
        assert [entry.offset for entry in vm.harvest()] == [2, 3]
