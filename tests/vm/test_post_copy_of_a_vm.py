"""A VM whose slot has a userfault bitmap: missing pages exit, are filled, and stay; other flags and slots end it."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator

import pytest

from guestmem import MemslotError
from guestmem.abi.model import KvmModel
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.abi.userfault import KVM_MEM_USERFAULT, USERFAULT_V3, pack_userfault
from guestmem.engines.soft import SoftEngine
from guestmem.vm import Fetch, Hlt, MemoryFault, Read, Vm, Write

PAGE, AT, PAGES = 0x1000, 1 << 20, 8
SET2 = MemoryIoctl.SET_USER_MEMORY_REGION2
USERFAULT = 16


@pytest.fixture
def vm() -> Iterator[Vm[SoftEngine, KvmModel]]:
    with Vm(version=USERFAULT_V3, engine="soft") as made:
        yield made
        made.check()


class Slot:
    """A slot of ordinary memory, and the bitmap that is its user space's."""

    def __init__(self, vm: Vm[SoftEngine, KvmModel], id_: int = 0, gpa: int = AT) -> None:
        self.vm, self.bitmap = vm, (ctypes.c_uint64 * 1)(0)
        self.made = vm.memory.create(id_, gpa=gpa, size=PAGES * PAGE)

    def region(self, flags: int) -> MemoryRegion:
        slot = self.made
        return MemoryRegion(slot.id, flags, slot.base_gfn * PAGE, PAGES * PAGE, slot.userspace_addr)

    def on(self, *pages: int) -> None:
        self.bitmap[0] = sum(1 << page for page in pages)
        self.vm.ioctl(SET2, pack_userfault(self.region(KVM_MEM_USERFAULT), ctypes.addressof(self.bitmap)))

    def off(self) -> None:
        self.vm.ioctl(SET2, self.region(0).pack2())


def run(vm: Vm[SoftEngine, KvmModel], *accesses: Read | Write | Fetch) -> object:
    vm.vcpus[0].load(accesses)
    return vm.vcpus[0].run()


def test_a_missing_page_exits_until_it_is_filled(vm: Vm[SoftEngine, KvmModel]) -> None:
    slot = Slot(vm)
    slot.on(*range(PAGES))
    vcpu = vm.vcpus[0]
    vcpu.load([Read(AT + 3 * PAGE + 8, 4), Write(AT + 5 * PAGE, b"x")])
    missing = MemoryFault(USERFAULT, AT + 3 * PAGE, PAGE)
    assert [vcpu.run(), vcpu.run()] == [missing, missing]
    vm.memory.write(AT + 3 * PAGE + 8, b"page")  # KVM's own accesses, and the VMM's, are not caught
    slot.bitmap[0] &= ~(1 << 3)
    assert vcpu.run() == MemoryFault(USERFAULT, AT + 5 * PAGE, PAGE)
    slot.bitmap[0] &= ~(1 << 5)
    assert (vcpu.run(), vcpu.values) == (Hlt(), [b"page"])
    assert run(vm, Fetch(AT)) == MemoryFault(USERFAULT, AT, PAGE)


def test_an_access_that_crosses_into_a_missing_page(vm: Vm[SoftEngine, KvmModel]) -> None:
    Slot(vm).on(1)
    assert run(vm, Read(AT + PAGE - 2, 4)) == MemoryFault(USERFAULT, AT + PAGE, PAGE)


def test_a_bit_that_comes_late_has_no_effect_on_what_is_mapped(vm: Vm[SoftEngine, KvmModel]) -> None:
    slot = Slot(vm)
    slot.on()
    assert run(vm, Read(AT, 8)) == Hlt()
    slot.bitmap[0] = 0b11
    assert run(vm, Read(AT, 8)) == Hlt(), "page 0 is mapped"
    assert run(vm, Read(AT + PAGE, 8)) == MemoryFault(USERFAULT, AT + PAGE, PAGE), "page 1 is not"
    slot.on(0, 1)
    assert run(vm, Read(AT, 8)) == Hlt(), "the same again is no change"
    slot.off()
    assert run(vm, Read(AT + PAGE, 8)) == Hlt()
    slot.on(0, 1)
    assert run(vm, Read(AT, 8)) == MemoryFault(USERFAULT, AT, PAGE), "switching it on zaps the slot"


def test_a_delete_of_another_slot_throws_translations_away(vm: Vm[SoftEngine, KvmModel]) -> None:
    slot, other = Slot(vm), Slot(vm, 1, 2 * AT)
    slot.on()
    assert run(vm, Read(AT, 8)) == Hlt()
    slot.bitmap[0] = 1
    assert run(vm, Read(AT, 8)) == Hlt()
    vm.memory.delete(other.made.id)
    assert run(vm, Read(AT, 8)) == MemoryFault(USERFAULT, AT, PAGE)


@pytest.mark.parametrize("way", ["ioctl", "transaction"])
def test_a_slot_that_goes_takes_its_bitmap_along(vm: Vm[SoftEngine, KvmModel], way: str) -> None:
    slot = Slot(vm)
    slot.on(*range(PAGES))
    if way == "ioctl":
        vm.memory.delete(0)
        vm.memory.create(0, gpa=AT, size=PAGES * PAGE)
    else:
        with vm.memory.transaction() as update:
            update.create(0, gpa=AT, size=PAGES * PAGE, host=update.delete(0))
    assert run(vm, Read(AT, 8)) == Hlt()


def test_a_bitmap_that_is_not_mapped_fails_the_run_without_an_exit(vm: Vm[SoftEngine, KvmModel]) -> None:
    slot = Slot(vm)
    vm.ioctl(SET2, pack_userfault(slot.region(KVM_MEM_USERFAULT), 0x1000))
    with pytest.raises(MemslotError) as caught:
        run(vm, Read(AT, 8))
    assert caught.value.errno == errno.EFAULT
    slot.off()
    assert run(vm, Read(AT, 8)) == Hlt()
