"""KVM_SET_USER_MEMORY_REGION_LIST: bytes in, one instant, all or none, dirty pages out, one line for what cannot be."""

from __future__ import annotations

import ctypes
import doctest
import errno
import re
import struct
from pathlib import Path

import pytest

from guestmem.abi.region_list import REGION_LIST, REGION_LIST_ENTRIES, RegionList
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.engines.kvm import unusable
from guestmem.engines.soft.update import ENTRIES_MAX
from guestmem.errors import BatchError, GuestmemError, MemslotError
from guestmem.vm import Vm, Write

ROOT = Path(__file__).parents[2]


def shown(vm: Vm) -> list[tuple[int, int, int, int]]:
    return [(slot.as_id, slot.id, slot.base_gfn, slot.npages) for slot in vm.memory]


def test_it_has_a_number_of_its_own_and_the_engines_limit() -> None:
    assert REGION_LIST & 0xFF not in {int(request) & 0xFF for request in MemoryIoctl}
    assert REGION_LIST >> 16 & 0x3FFF == 32
    assert REGION_LIST_ENTRIES == ENTRIES_MAX


def test_by_address_as_the_kernel_would_get_it() -> None:
    with Vm() as vm:
        whole = vm.memory.create(0, gpa=0, size=0x4000)
        vm.memory.write(0x3000, b"stays")
        entries = [MemoryRegion(0), MemoryRegion(7, 0, 0x3000, 0x1000, whole.userspace_addr + 0x3000)]
        buffer = ctypes.create_string_buffer(RegionList(entries).pack())
        assert vm.ioctl(REGION_LIST, ctypes.addressof(buffer)) == 0
        assert shown(vm) == [(0, 7, 3, 1)]
        assert vm.memory.read(0x3000, 5) == b"stays"


def test_dirty_pages_whose_log_ends_are_handed_out() -> None:
    with Vm() as vm:
        whole = vm.memory.create(0, gpa=0, size=0x4000, flags=1)
        vm.vcpus[0].load([Write(0x1000, b"x"), Write(0x3000, b"y")])
        vm.vcpus[0].run()
        pages = ctypes.create_string_buffer(16 * 4)
        kept = MemoryRegion(1, 1, 0, 0x2000, whole.userspace_addr)  # the log of its pages goes on there
        listed = RegionList([MemoryRegion(0), kept], room=4, dirty=ctypes.addressof(pages))
        assert vm.ioctl(REGION_LIST, listed.pack()) == 1
        assert struct.unpack_from("<QQ", pages) == (3, whole.userspace_addr + 0x3000)
        assert vm.dirty_log(1).nonzero()[0].tolist() == [1]


def test_other_address_spaces() -> None:
    with Vm(smm=True) as vm:
        vm.memory.create(0, gpa=0, size=0x1000)
        there = MemoryRegion(3, 0, 0x5000, 0x1000, vm.memory[0].userspace_addr)
        assert vm.ioctl(REGION_LIST, RegionList([there], as_id=1).pack()) == 0
        assert shown(vm) == [(0, 0, 0, 1), (1, 3, 5, 1)]


GOOD = MemoryRegion(5, 0, 0x100000, 0x1000, 0x7000)
WRONG = {
    "flags": (RegionList([GOOD], flags=1).pack(), errno.EINVAL, "flags 0x1, reserved 0x0", None),
    "reserved": (RegionList([GOOD], reserved=1).pack(), errno.EINVAL, "reserved 0x1", None),
    "address space": (RegionList([GOOD], as_id=1).pack(), errno.EINVAL, "as_id 1; there are 1", None),
    "half an entry": (RegionList([GOOD]).pack()[:-1], errno.EFAULT, "63 bytes; header and entries have 64", None),
    "half a header": (b"\0" * 31, errno.EFAULT, "31 bytes; the header has 32", None),
    "too many": (
        struct.pack("<IIIIQQ", REGION_LIST_ENTRIES + 1, 0, 0, 0, 0, 0),
        errno.E2BIG,
        "nent 4097; 4096 are allowed",
        None,
    ),
    "no room": (RegionList([GOOD, MemoryRegion(1)]).pack(), errno.ENOSPC, "room 0; 2 pages", None),
    "nowhere to write": (RegionList([GOOD, MemoryRegion(1)], room=2, dirty=8).pack(), errno.EFAULT, "0x8", None),
    "a slot's upper half": (RegionList([GOOD, MemoryRegion(1 << 16)]).pack(), errno.EINVAL, "upper half", 1),
    "part of a page": (
        RegionList([GOOD, GOOD._replace(slot=6, memory_size=7)]).pack(),
        errno.EINVAL,
        "not in pages",
        1,
    ),
    "no such slot": (RegionList([GOOD, MemoryRegion(9)]).pack(), errno.EINVAL, "slot 9", 1),
    "overlap": (RegionList([GOOD, GOOD._replace(slot=6)]).pack(), errno.EEXIST, "slot 6", 1),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_changes_nothing(what: str) -> None:
    argument, number, message, entry = WRONG[what]
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=0x1000)
        vm.memory.create(1, gpa=0x4000, size=0x2000, flags=1)
        before = shown(vm)
        with pytest.raises(GuestmemError, match=re.escape(message)) as caught:
            vm.ioctl(REGION_LIST, argument)
        assert isinstance(caught.value, MemslotError)
        assert caught.value.errno == number
        assert (caught.value.entry if isinstance(caught.value, BatchError) else None) == entry
        assert shown(vm) == before


def test_the_page_runs() -> None:
    done = doctest.testfile(str(ROOT / "docs" / "abi.md"), module_relative=False, encoding="utf-8")
    assert done.failed == 0
    assert done.attempted > 3


def test_an_empty_list_is_nothing() -> None:
    with Vm() as vm:
        assert vm.ioctl(REGION_LIST, RegionList([]).pack()) == 0


@pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
def test_no_kernel_has_it() -> None:
    with Vm(engine="kvm") as vm, pytest.raises(MemslotError, match=r"ENOTTY: .* no kernel has it"):
        vm.ioctl(REGION_LIST, RegionList([GOOD]).pack())
