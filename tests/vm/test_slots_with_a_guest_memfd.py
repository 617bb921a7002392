"""Slots with a guest_memfd, made by ioctl: found like others, changed by no transaction, deleted by themselves."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from guestmem import MemslotError
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


def test_it_is_neither_moved_nor_changed(vm: Vm) -> None:
    before = vm.memory[3]
    with pytest.raises(MemslotError) as caught:
        vm.memory.move(3, 2 * AT)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(MemslotError) as caught:
        vm.memory.set_flags(3, 0)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(MemslotError, match="entry 0: slot 3: it has a guest_memfd"), vm.memory.transaction() as update:
        update.delete(3)
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
