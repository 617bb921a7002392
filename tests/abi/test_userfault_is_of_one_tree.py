"""KVM_MEM_USERFAULT is an unknown flag of mainline; in the tree that has it, a bitmap decides which accesses exit."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from guestmem import MemslotError
from guestmem.abi.checks import Host
from guestmem.abi.model import KvmModel
from guestmem.abi.structures import EnableCap, MemoryIoctl, MemoryRegion
from guestmem.abi.user_memory import BufferMemory
from guestmem.abi.userfault import KVM_MEM_USERFAULT, USERFAULT_V3, pack_userfault, userfault_exit
from guestmem.abi.versions import VERSIONS, KernelVersion
from guestmem.memslots.slot import SlotKey

PAGE, BITMAP = 4096, 0x7000_0000_0000
SET1, SET2 = MemoryIoctl.SET_USER_MEMORY_REGION, MemoryIoctl.SET_USER_MEMORY_REGION2
SLOT = MemoryRegion(1, KVM_MEM_USERFAULT, 0x10 * PAGE, 130 * PAGE, 0x10000)


def made(version: KernelVersion = USERFAULT_V3, words: int = 3) -> KvmModel:
    return KvmModel(Host(version=version), user=BufferMemory(BITMAP, 8 * words))


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(MemslotError) as caught:
        call()
    return caught.value.errno


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_mainline_does_not_know_the_flag(version: KernelVersion) -> None:
    vm = made(version)
    assert errno_of(lambda: vm.ioctl(SET2, pack_userfault(SLOT, BITMAP))) == errno.EINVAL
    assert vm.ioctl(MemoryIoctl.CHECK_EXTENSION, 245) == 0


def test_the_first_form_never_does() -> None:
    assert errno_of(lambda: made().ioctl(SET1, SLOT.pack())) == errno.EINVAL


def test_a_capability_that_says_so_and_cannot_be_enabled() -> None:
    vm = made()
    assert vm.ioctl(MemoryIoctl.CHECK_EXTENSION, 245) == 1
    assert errno_of(lambda: vm.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(245).pack())) == errno.EINVAL


def test_bits_say_which_accesses_exit() -> None:
    vm = made()
    vm.ioctl(SET2, pack_userfault(SLOT, BITMAP))
    for page in (0, 63, 64, 129):
        assert userfault_exit(vm, (0x10 + page) * PAGE) is None
        word = page // 64
        vm.user.write(BITMAP + 8 * word, (1 << page % 64).to_bytes(8, "little"))
        assert userfault_exit(vm, (0x10 + page) * PAGE + 123) == (1 << 4, (0x10 + page) * PAGE, PAGE)
        assert userfault_exit(vm, (0x11 + page) * PAGE) is None
        vm.user.write(BITMAP + 8 * word, bytes(8))
    assert userfault_exit(vm, 0) is None, "no slot is there"
    vm.check()


def test_a_bitmap_need_not_be_mapped_until_it_is_looked_at() -> None:
    vm = made(words=2)
    vm.ioctl(SET2, pack_userfault(SLOT, BITMAP))
    assert userfault_exit(vm, (0x10 + 127) * PAGE) is None
    assert errno_of(lambda: userfault_exit(vm, (0x10 + 128) * PAGE)) == errno.EFAULT


@pytest.mark.parametrize("bitmap", [1 << 63, (1 << 47) - PAGE - 16, (1 << 64) - 8])
def test_a_bitmap_that_is_not_of_user_space(bitmap: int) -> None:
    """130 pages take three words: 16 bytes before the end of user space are too few."""
    vm = made()
    assert errno_of(lambda: vm.ioctl(SET2, pack_userfault(SLOT, bitmap))) == errno.EINVAL
    assert not vm.userfaults
    vm.ioctl(SET2, pack_userfault(SLOT._replace(memory_size=128 * PAGE), (1 << 47) - PAGE - 16))


def test_the_flag_comes_and_goes_and_the_slot_with_it() -> None:
    vm, key = made(), SlotKey(0, 1)
    plain = SLOT._replace(flags=0)
    vm.ioctl(SET2, plain.pack2())
    assert not vm.userfaults
    vm.ioctl(SET2, pack_userfault(SLOT, BITMAP))
    assert vm.userfaults.get(key) == BITMAP
    vm.ioctl(SET2, pack_userfault(SLOT, BITMAP + 8))
    assert vm.userfaults.get(key) == BITMAP, "nothing else changes, so nothing does"
    vm.ioctl(SET2, pack_userfault(SLOT._replace(guest_phys_addr=0x200 * PAGE), BITMAP + 8))
    assert vm.userfaults.get(key) == BITMAP + 8, "a move brings its own"
    vm.ioctl(SET2, plain._replace(guest_phys_addr=0x200 * PAGE).pack2())
    assert not vm.userfaults
    vm.ioctl(SET2, pack_userfault(SLOT._replace(guest_phys_addr=0x200 * PAGE), BITMAP))
    vm.ioctl(SET2, pack_userfault(SLOT._replace(memory_size=0), BITMAP))
    assert not vm.userfaults
    assert vm.slot(1) is None


def test_writes_are_noticed_again_when_the_flag_comes_on() -> None:
    """Rings: switching it on zaps the slot, and only that."""
    vm = made()
    other = MemoryRegion(2, 1, 0x1000 * PAGE, 4 * PAGE, 0x80_0000)
    vm.ioctl(SET2, SLOT._replace(flags=1).pack2())
    vm.ioctl(SET2, other.pack2())
    vm.dirty.writable |= {(SlotKey(0, 1), 3), (SlotKey(0, 2), 1)}
    vm.ioctl(SET2, pack_userfault(SLOT._replace(flags=1 | KVM_MEM_USERFAULT), BITMAP))
    assert vm.dirty.writable == {(SlotKey(0, 2), 1)}
