"""KVM's own slots (TSS, APIC access page, identity map): slots as any other, but out of user space's reach."""

from __future__ import annotations

import errno

import pytest

from guestmem import ChangeKind, MemslotError
from guestmem.abi.checks import Host
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.abi.versions import LINUX_6_12, VERSIONS, KernelVersion
from guestmem.vm import KvmModel

PAGE = 0x1000
TSS, APIC, IDENTITY = 32764, 32765, 32766
SET = MemoryIoctl.SET_USER_MEMORY_REGION
TSS_GPA = 0xFFFBD000


@pytest.fixture
def vm() -> KvmModel:
    made = KvmModel()
    made.set_internal_region(MemoryRegion(TSS, 0, TSS_GPA, 3 * PAGE, 0))
    return made


def refusal(vm: KvmModel, region: MemoryRegion, *, internal: bool = False) -> int | None:
    before, generation = list(vm.memslots), vm.memslots.generation()
    with pytest.raises(MemslotError) as caught:
        vm.set_internal_region(region) if internal else vm.ioctl(SET, region.pack())
    assert (list(vm.memslots), vm.memslots.generation()) == (before, generation)
    return caught.value.errno


def test_they_have_frames_pages_and_swaps(vm: KvmModel) -> None:
    assert (vm.accounting.pages, vm.accounting.mmu_pages, vm.memslots.generation()) == (3, 64, 1)
    assert refusal(vm, MemoryRegion(0, 0, TSS_GPA - PAGE, 2 * PAGE, 0)) == errno.EEXIST
    vm.ioctl(SET, MemoryRegion(0, 0, TSS_GPA - PAGE, PAGE, 0).pack())
    assert refusal(vm, MemoryRegion(APIC, 0, TSS_GPA - PAGE, PAGE, 0), internal=True) == errno.EEXIST
    vm.check()


def test_all_three_can_be_made_moved_and_deleted(vm: KvmModel) -> None:
    for id_ in (APIC, IDENTITY):
        region = MemoryRegion(id_, 0, (id_ - TSS) << 20, PAGE, 0)
        assert vm.set_internal_region(region) is ChangeKind.CREATE
        assert vm.set_internal_region(region._replace(guest_phys_addr=id_ << 20)) is ChangeKind.MOVE
    assert vm.accounting.pages == 5
    for id_ in (APIC, TSS, IDENTITY):
        assert vm.set_internal_region(MemoryRegion(id_)) is ChangeKind.DELETE
    assert (vm.accounting.pages, len(vm.memslots)) == (0, 0)
    assert refusal(vm, MemoryRegion(32767, 0, 0, PAGE, 0), internal=True) == errno.EINVAL
    vm.check()


@pytest.mark.parametrize("id_", [TSS, APIC, IDENTITY])
def test_user_space_cannot_reach_them(vm: KvmModel, id_: int) -> None:
    for region in (MemoryRegion(id_), MemoryRegion(id_, 0, 0, PAGE), MemoryRegion(id_, 1, TSS_GPA, 3 * PAGE)):
        assert refusal(vm, region) == errno.EINVAL
        with pytest.raises(MemslotError, match=r"slot: \d+ is not in 0\.\.32763"):
            vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION2, region.pack2())
    assert refusal(vm, MemoryRegion(5, 0, 0, PAGE), internal=True) == errno.EINVAL


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_the_limit_of_pages_is_theirs_in_the_oldest_kernel_only(version: KernelVersion) -> None:
    vm = KvmModel(Host(version=version))
    large = MemoryRegion(TSS, 0, 0, 1 << 43, 0)
    if version is LINUX_6_12:
        assert refusal(vm, large, internal=True) == errno.EINVAL
        vm.set_internal_region(large._replace(memory_size=(1 << 43) - PAGE))
    else:
        assert vm.set_internal_region(large) is ChangeKind.CREATE
        assert vm.memslots.find((1 << 31) - 1) is not None
    assert vm.set_internal_region(MemoryRegion(TSS)) is ChangeKind.DELETE
    for slot in (5, 6):
        assert refusal(vm, large._replace(slot=slot)) == errno.EINVAL
        largest = MemoryRegion(slot, 0, slot << 43, (1 << 43) - PAGE, 0)
        vm.ioctl(SET, largest.pack())
    assert vm.accounting.pages == 2 * ((1 << 31) - 1)


def test_each_address_space_has_its_own() -> None:
    vm = KvmModel(Host(address_spaces=2))
    for as_id in (0, 1):
        vm.set_internal_region(MemoryRegion(as_id << 16 | TSS, 0, TSS_GPA, 3 * PAGE, 0))
    assert vm.accounting.pages == 6
    assert [slot.as_id for slot in vm.memslots] == [0, 1]
    vm.check()
