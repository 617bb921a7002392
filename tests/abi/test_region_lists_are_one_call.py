"""KVM_SET_USER_MEMORY_REGION_LIST: bytes in, one instant, all or none, dirty pages out, one line for what cannot be."""

from __future__ import annotations

import ctypes
import doctest
import errno
import re
import struct
from pathlib import Path

import pytest

from guestmem.abi.region_list import (
    REGION_LIST,
    REGION_LIST_ENTRIES,
    REGION_LIST_REGION2,
    REGION_LIST_SPACES,
    RegionList,
)
from guestmem.abi.structures import CreateGuestMemfd, MemoryIoctl, MemoryRegion
from guestmem.engines.kvm import unusable
from guestmem.engines.soft.update import ENTRIES_MAX
from guestmem.errors import BatchError, GuestmemError, MemslotError
from guestmem.vm import Hlt, Read, Vm, Write

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


def test_both_address_spaces_with_one_instant() -> None:
    with Vm(smm=True) as vm:
        there = vm.memory.create(0, gpa=0, size=0x4000)
        host = there.userspace_addr
        entries = [
            MemoryRegion(0),
            MemoryRegion(1, 0, 0x8000, 0x4000, host),
            MemoryRegion(1 << 16 | 2, 0, 0x8000, 0x4000, host),
        ]
        assert vm.ioctl(REGION_LIST, RegionList(entries, flags=REGION_LIST_SPACES).pack()) == 0
        assert shown(vm) == [(0, 1, 8, 4), (1, 2, 8, 4)]
        wrong = [MemoryRegion(1 << 16 | 2), MemoryRegion(9), MemoryRegion(1)]
        with pytest.raises(BatchError, match="entry 1: slot 9"):
            vm.ioctl(REGION_LIST, RegionList(wrong, flags=REGION_LIST_SPACES).pack())
        assert shown(vm) == [(0, 1, 8, 4), (1, 2, 8, 4)]
        vm.check()


def test_slots_with_a_guest_memfd() -> None:
    with Vm(private_memory=True) as vm:
        file = vm.create_guest_memfd(0x4000)
        host = vm.memory.create(9, gpa=0x900000, size=0x4000).userspace_addr
        low = MemoryRegion(0, 4, 0x100000, 0x2000, host, 0, file.fd)
        high = MemoryRegion(1, 4, 0x102000, 0x2000, host + 0x2000, 0x2000, file.fd)
        vm.ioctl(REGION_LIST, RegionList([low, high], flags=REGION_LIST_REGION2).pack())
        vm.set_memory_attributes(0x100000, 0x4000, 8)
        vm.vcpus[0].load([Write(0x103000, b"ours", private=True)])
        assert vm.vcpus[0].run() == Hlt()
        whole = MemoryRegion(0, 4, 0x100000, 0x4000, host, 0, file.fd)
        merged = RegionList([MemoryRegion(0), MemoryRegion(1), whole], flags=REGION_LIST_REGION2)
        assert vm.ioctl(REGION_LIST, merged.pack()) == 0
        assert shown(vm) == [(0, 0, 0x100, 4), (0, 9, 0x900, 4)]
        vm.vcpus[0].load([Read(0x103000, 4, private=True)])
        assert vm.vcpus[0].run() == Hlt()
        vm.check()
        again = [MemoryRegion(9), MemoryRegion(3, 4, 0x500000, 0x1000, host, 0x1000, file.fd)]
        with pytest.raises(BatchError, match=r"entry 1: .* is bound to slot 0 already"):  # a range is one slot's
            vm.ioctl(REGION_LIST, RegionList(again, flags=REGION_LIST_REGION2).pack())
        assert shown(vm) == [(0, 0, 0x100, 4), (0, 9, 0x900, 4)]
        vm.check()


def test_a_file_that_an_ioctl_made() -> None:
    with Vm(private_memory=True) as vm:
        fd = vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(0x2000, 0).pack())
        host = vm.memory.create(9, gpa=0x900000, size=0x2000).userspace_addr
        bound = MemoryRegion(0, 4, 0x100000, 0x2000, host, 0, fd)
        assert vm.ioctl(REGION_LIST, RegionList([bound], flags=REGION_LIST_REGION2).pack()) == 0
        vm.set_memory_attributes(0x100000, 0x2000, 8)
        vm.vcpus[0].load([Write(0x100000, b"x", private=True)])
        assert vm.vcpus[0].run() == Hlt()
        vm.check()


GOOD = MemoryRegion(5, 0, 0x100000, 0x1000, 0x7000)
WRONG = {
    "flags": (RegionList([GOOD], flags=4).pack(), errno.EINVAL, "flags 0x4, reserved 0x0", None),
    "two ways to say the space": (
        RegionList([GOOD], as_id=0, flags=2).pack()[:8] + b"\1" + RegionList([GOOD]).pack()[9:],
        errno.EINVAL,
        "as_id 1",
        None,
    ),
    "half a second form": (
        RegionList([GOOD], flags=1).pack()[:-1],
        errno.EFAULT,
        "191 bytes; header and entries have 192",
        None,
    ),
    "a file in the first form": (
        RegionList([GOOD, GOOD._replace(slot=6, flags=4)]).pack(),
        errno.EINVAL,
        "no room for one",
        1,
    ),
    "a file that is none": (
        RegionList([GOOD, GOOD._replace(slot=6, flags=4, guest_memfd=77)], flags=1).pack(),
        errno.EBADF,
        "file 77 is not open",
        1,
    ),
    "an overlap before a file that is none": (
        RegionList([GOOD, GOOD._replace(slot=6), GOOD._replace(slot=7, flags=4, guest_memfd=77)], flags=1).pack(),
        errno.EEXIST,
        "slot 6",
        1,
    ),
    "a space that is none": (
        RegionList([GOOD, MemoryRegion(1 << 16 | 3, 0, 0x200000, 0x1000, 0x7000)], flags=2).pack(),
        errno.EINVAL,
        "as_id: 1 is not in 0..0",
        1,
    ),
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
