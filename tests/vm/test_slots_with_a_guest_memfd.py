"""Slots with a guest_memfd: made, found and changed like others, by themselves and in transactions, on both engines."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from guestmem import MemslotError, UsageError
from guestmem.abi.structures import KVM_MEM_GUEST_MEMFD, CreateGuestMemfd, MemoryCap, MemoryIoctl, MemoryRegion
from guestmem.engines.kvm.device import unusable
from guestmem.vm import Vm

PAGE = 0x1000
AT = 1 << 20


@pytest.fixture(params=["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable()))])
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A VM with slot 3 on a guest_memfd, and slot 9 on the same host memory."""
    with Vm(engine=request.param) as made:
        if not made.check_extension(MemoryCap.GUEST_MEMFD):
            pytest.skip("this kernel has no KVM_CAP_GUEST_MEMFD for ordinary VMs")
        made.memory.create(9, gpa=1 << 30, size=8 * PAGE)
        bind(made, made.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(8 * PAGE, 0).pack()))
        yield made


def bind(vm: Vm, file: int) -> int:
    hva = vm.memory[9].userspace_addr
    region = MemoryRegion(3, KVM_MEM_GUEST_MEMFD, AT, 8 * PAGE, hva, guest_memfd=file).pack2()
    assert vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION2, region) == 0
    return file


def test_it_is_found(vm: Vm) -> None:
    assert vm.memory[3].flags == KVM_MEM_GUEST_MEMFD
    assert [slot.id for slot in vm.memory] == [3, 9]
    assert vm.memory.find(AT + PAGE) is not None
    vm.check()


def test_it_is_neither_moved_nor_changed_by_itself(vm: Vm) -> None:
    before = vm.memory[3]
    with pytest.raises(MemslotError) as caught:
        vm.memory.move(3, 2 * AT)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(MemslotError) as caught:
        vm.memory.set_flags(3, 0)
    assert caught.value.errno == errno.EINVAL
    assert vm.memory[3] == before
    vm.check()


def test_deleted_its_range_of_the_file_is_free(vm: Vm) -> None:
    file = vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(8 * PAGE, 0).pack())
    for _ in range(2):
        vm.memory.delete(3)
        assert vm.memory.get(3) is None
        assert vm.memory.find(AT) is None
        bind(vm, file)
    vm.check()


@pytest.fixture
def file(vm: Vm) -> Any:
    """A file of 16 pages."""
    return vm.create_guest_memfd(16 * PAGE)


def test_a_slot_is_made_with_a_file_and_reads_what_the_host_wrote(vm: Vm, file: Any) -> None:
    slot = vm.memory.create(4, gpa=2 * AT, size=8 * PAGE, guest_memfd=file, offset=4 * PAGE)
    assert (slot.flags, slot.guest_memfd_offset) == (KVM_MEM_GUEST_MEMFD, 4 * PAGE)
    vm.memory.write(2 * AT + 5, b"shared")
    assert vm.memory.read(2 * AT, 11) == b"\0\0\0\0\0shared"
    other = vm.memory.create(5, gpa=3 * AT, size=4 * PAGE, guest_memfd=file)
    assert vm.memory.read(3 * AT, 4 * PAGE) == bytes(4 * PAGE), "another part of the file"
    assert other.userspace_addr != slot.userspace_addr
    vm.check()


def test_transactions_split_move_merge_and_bind_elsewhere(vm: Vm, file: Any) -> None:
    vm.memory.create(4, gpa=2 * AT, size=8 * PAGE, guest_memfd=file)
    vm.memory.write(2 * AT, b"first")
    vm.memory.write(2 * AT + 3 * PAGE, b"fourth")
    with vm.memory.transaction() as update:
        host = update.delete(4)
        update.create(4, gpa=2 * AT, size=3 * PAGE, host=host, guest_memfd=file)
        update.create(5, gpa=2 * AT + 3 * PAGE, size=5 * PAGE, host=host + 3 * PAGE, guest_memfd=file, offset=3 * PAGE)
    assert (vm.memory.read(2 * AT, 5), vm.memory.read(2 * AT + 3 * PAGE, 6)) == (b"first", b"fourth")
    with vm.memory.transaction() as update:
        update.move(5, 3 * AT)
    assert vm.memory.read(3 * AT, 6) == b"fourth"
    assert (vm.memory[5].guest_memfd_offset, vm.memory[5].userspace_addr) == (3 * PAGE, host + 3 * PAGE)
    with vm.memory.transaction() as update:
        update.delete(4)
        update.delete(5)
        update.create(6, gpa=2 * AT, size=8 * PAGE, host=host, guest_memfd=file)
    assert (vm.memory.read(2 * AT, 5), vm.memory.read(2 * AT + 3 * PAGE, 6)) == (b"first", b"fourth")
    with vm.memory.transaction() as update:
        update.delete(6)
        update.create(6, gpa=2 * AT, size=8 * PAGE, guest_memfd=file, offset=8 * PAGE)
    assert vm.memory.read(2 * AT, 5) == bytes(5), "other pages of the file"
    vm.check()


def test_primitives_keep_the_file(vm: Vm, file: Any) -> None:
    vm.memory.create(4, gpa=2 * AT, size=8 * PAGE, guest_memfd=file, offset=2 * PAGE)
    vm.memory.write(2 * AT + 5 * PAGE, b"sixth")
    low, high = vm.memory.split(4, 2 * AT + 3 * PAGE, 5)
    assert (low.guest_memfd_offset, high.guest_memfd_offset) == (2 * PAGE, 5 * PAGE)
    assert vm.memory.read(2 * AT + 5 * PAGE, 5) == b"sixth"
    assert vm.memory.resize(5, 4 * PAGE).npages == 4
    merged = vm.memory.merge(4, 5)
    assert (merged.npages, merged.guest_memfd_offset) == (7, 2 * PAGE)
    assert merged.guest_memfd == low.guest_memfd != 0
    with pytest.raises(MemslotError) as caught:
        vm.memory.set_readonly(4, True)
    assert caught.value.errno == errno.EINVAL
    vm.check()


def test_what_cannot_be_bound_is_refused_with_nothing_changed(vm: Vm, file: Any) -> None:
    vm.memory.create(4, gpa=2 * AT, size=8 * PAGE, guest_memfd=file)
    before = list(vm.memory)
    host = vm.memory[4].userspace_addr
    for wrong, number, why in (
        ({"offset": 4 * PAGE}, errno.EINVAL, "bound to slot"),
        ({"offset": 12 * PAGE}, errno.EINVAL, "is not in a file of"),
        ({"offset": 8 * PAGE, "flags": 2}, errno.EINVAL, "flags 0x6 are not of"),
        ({"offset": 8 * PAGE, "flags": 1}, errno.EINVAL, "flags 0x5 are not of"),
        ({"offset": 8 * PAGE, "gpa": 2 * AT + 4 * PAGE}, errno.EEXIST, "overlaps Slot 4"),
        ({"offset": 100}, errno.EINVAL, "offset 0x64 is not a multiple of 0x1000"),
    ):
        asked = {"gpa": 4 * AT, "size": 8 * PAGE, "host": host, "guest_memfd": file, **wrong}
        with pytest.raises(MemslotError) as caught:
            vm.memory.create(5, **asked)
        assert caught.value.errno == number, wrong
        if vm.engine.name == "soft":
            assert why in str(caught.value)
        with pytest.raises(MemslotError) as caught:
            create_both(vm, asked)
        assert caught.value.errno == number, wrong
        assert list(vm.memory) == before
    vm.check()


def create_both(vm: Vm, asked: dict[str, Any]) -> None:
    with vm.memory.transaction() as update:
        update.create(7, gpa=6 * AT, size=PAGE)
        update.create(5, **asked)


def test_a_file_of_another_vm_and_what_is_no_file(vm: Vm) -> None:
    with Vm(engine=vm.engine.name) as other:
        theirs = other.create_guest_memfd(8 * PAGE)
        with pytest.raises(MemslotError, match="slot 4: guest_memfd belongs to another VM"):
            vm.memory.create(4, gpa=2 * AT, size=8 * PAGE, guest_memfd=theirs)
    with pytest.raises(UsageError, match="slot 4: guest_memfd: 3 is none"):
        vm.memory.create(4, gpa=2 * AT, size=8 * PAGE, guest_memfd=3)
    with pytest.raises(MemslotError) as caught:
        vm.create_guest_memfd(100)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(MemslotError) as caught:
        vm.create_guest_memfd(PAGE, flags=64)
    assert caught.value.errno == errno.EINVAL
