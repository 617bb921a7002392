"""With SMM a VM has two address spaces: slots, overlaps, generations, logs and ring entries are each space's own."""

from __future__ import annotations

import ctypes
import errno

import pytest

from guestmem import MemslotError, UsageError
from guestmem.abi.checks import Host
from guestmem.abi.structures import DirtyLog, MemoryIoctl, MemoryRegion
from guestmem.dirty import DirtyEntry
from guestmem.memslots import SlotKey
from guestmem.vm import Hlt, KvmModel, Mmio, Vm, Write

PAGE = 0x1000
SET, SET2 = MemoryIoctl.SET_USER_MEMORY_REGION, MemoryIoctl.SET_USER_MEMORY_REGION2
SMM = 1 << 16
MULTI_ADDRESS_SPACE = 118


def region(key: int, base_gfn: int = 0, npages: int = 0, flags: int = 0) -> MemoryRegion:
    return MemoryRegion(key, flags, base_gfn << 12, npages << 12, 0)


def test_a_slot_is_of_one_space() -> None:
    vm = KvmModel(Host(address_spaces=2))
    vm.ioctl(SET, region(3, 0, 4).pack())
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET, region(SMM | 3).pack())  # a delete, in the other space
    assert caught.value.errno == errno.EINVAL
    vm.ioctl(SET2, region(SMM | 3, 2, 4, 1).pack2())  # over the same frames, of another size, logged
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET, region(SMM | 4, 1, 2).pack())
    assert caught.value.errno == errno.EEXIST
    vm.ioctl(SET, region(SMM | 3, 8, 4).pack())  # moved, and its log dropped
    vm.ioctl(SET, region(3).pack())
    assert [(slot.as_id, slot.base_gfn) for slot in vm.memslots] == [(1, 8)]
    assert vm.accounting.pages == 4
    vm.check()


@pytest.mark.parametrize("request_", [SET, SET2])
def test_there_are_two_and_no_more(request_: MemoryIoctl) -> None:
    for spaces in (1, 2):
        vm = KvmModel(Host(address_spaces=spaces))
        assert vm.ioctl(MemoryIoctl.CHECK_EXTENSION, MULTI_ADDRESS_SPACE) == (2 if spaces == 2 else 0)
        for as_id in (spaces, 7, 0xFFFF):
            made = region(as_id << 16, 0, 4)
            with pytest.raises(MemslotError, match=rf"as_id: {as_id} is not in 0\.\.{spaces - 1}") as caught:
                vm.ioctl(request_, made.pack() if request_ is SET else made.pack2())
            assert caught.value.errno == errno.EINVAL
    for host in ({"address_spaces": 3}, {"address_spaces": 0}, {"address_spaces": 2, "private_memory": True}):
        with pytest.raises(UsageError, match="address_spaces"):
            Host(**host)  # type: ignore[arg-type]


def test_logs_are_each_spaces_own() -> None:
    with Vm(smm=True) as vm:
        for as_id in (0, 1):
            vm.memory.create(2, gpa=0, size=(4 + as_id) * PAGE, flags=1, as_id=as_id)
        vcpu = vm.vcpus[0]
        for smm, page in ((False, 1), (True, 4), (True, 2)):
            vcpu.smm = smm
            vcpu.load([Write(page * PAGE, b"w")])
            assert vcpu.run() == Hlt()
        assert vm.dirty_log(2, as_id=1).tolist() == [False, False, True, False, True]
        assert vm.dirty_log(2).tolist() == [False, True, False, False]
        assert not vm.dirty_log(2, as_id=1).any()
        vm.memory.delete(2, as_id=1)
        with pytest.raises(MemslotError, match="ENOENT"):
            vm.dirty_log(2, as_id=1)
        vcpu.smm = False
        vcpu.load([Write(4 * PAGE, b"w")])  # this page is the other space's only
        assert isinstance(vcpu.run(), Mmio)
        vm.check()


def test_ring_entries_name_the_space() -> None:
    with Vm(smm=True, ring_entries=256) as vm:
        for as_id in (0, 1):
            vm.memory.create(2, gpa=0, size=4 * PAGE, flags=1, as_id=as_id)
        vcpu = vm.vcpus[0]
        for smm, page in ((False, 1), (True, 1), (True, 1), (False, 3)):
            vcpu.smm = smm
            vcpu.load([Write(page * PAGE, b"w")])
            assert vcpu.run() == Hlt()
        assert vm.harvest() == [DirtyEntry(2, 1, 0), DirtyEntry(2, 1, 1), DirtyEntry(2, 3, 0)]
        assert vm.reset_dirty_rings() == 3


def test_get_dirty_log_takes_the_space_in_the_upper_half() -> None:
    vm = KvmModel(Host(address_spaces=2))
    vm.ioctl(SET, region(SMM | 5, 0, 4, 1).pack())
    vm.dirty.mark(SlotKey(1, 5), 2, None)
    buffer = ctypes.create_string_buffer(8)
    vm.ioctl(MemoryIoctl.GET_DIRTY_LOG, DirtyLog(SMM | 5, 0, ctypes.addressof(buffer)).pack())
    assert buffer.raw == bytes([4]) + bytes(7)
    for key, number in ((5, errno.ENOENT), (2 << 16 | 5, errno.EINVAL), (SMM | 32764, errno.EINVAL)):
        with pytest.raises(MemslotError) as caught:
            vm.ioctl(MemoryIoctl.GET_DIRTY_LOG, DirtyLog(key, 0, ctypes.addressof(buffer)).pack())
        assert caught.value.errno == number
