"""A guest_memfd slot: a file of this VM, a range inside it that no other slot has; then it can only be deleted."""

from __future__ import annotations

import os

import pytest

from abi_words import ARENA, EBADF, EEXIST, EINVAL, OK, PAGE, Ask
from guestmem import MemslotError
from guestmem.abi.structures import CreateGuestMemfd, MemoryIoctl, MemoryRegion
from guestmem.conform.calls import Answer, Call
from guestmem.conform.kernel import Kernel
from guestmem.vm import KvmModel

CREATE_GUEST_MEMFD, SET2 = MemoryIoctl.CREATE_GUEST_MEMFD, MemoryIoctl.SET_USER_MEMORY_REGION2
CLOSED, DEVICE, VM, FIRST, SECOND = 0, 1, 2, 3, 4


def bind(ask: Ask, slot: int, gpa: int, pages: int, file: int, offset: int) -> int:
    return ask("region2", slot, 4, gpa * PAGE, pages * PAGE, ARENA, offset, file, 0).result


def test_which_files(ask: Ask) -> None:
    assert bind(ask, 0, 0, 1, CLOSED, 0) == EBADF
    assert bind(ask, 0, 0, 1, DEVICE, 0) == EINVAL
    assert bind(ask, 0, 0, 1, VM, 0) == EINVAL
    assert ask("guest_memfd", PAGE, 0).result == OK
    assert bind(ask, 0, 0, 1, FIRST, 0) == OK


@pytest.mark.parametrize("offset", [1, 8, 0x800, 0xFFF, 4 * PAGE, 1 << 63, (1 << 64) - PAGE])
def test_which_ranges(ask: Ask, offset: int) -> None:
    assert ask("guest_memfd", 4 * PAGE, 0).result == OK
    assert bind(ask, 0, 0, 1, FIRST, offset) == EINVAL
    assert bind(ask, 0, 0, 5, FIRST, 0) == EINVAL
    assert bind(ask, 0, 0, 4, FIRST, 0) == OK


@pytest.mark.parametrize("pages", [1, 2, 4])
def test_an_end_from_2_to_the_63_on_passes(ask: Ask, pages: int) -> None:
    """Offset + size is a sum of loff_t in kvm_gmem_bind(): negative from 2**63 on, so not past the file's size."""
    assert ask("guest_memfd", 4 * PAGE, 0).result == OK
    end = 1 << 63
    assert bind(ask, 0, 0, pages, FIRST, end - (pages + 1) * PAGE) == EINVAL, "ends a page below: past the file"
    assert bind(ask, 0, 0, pages, FIRST, end) == EINVAL, "the offset itself is negative"
    assert bind(ask, 0, 0, pages, FIRST, end - pages * PAGE) == OK
    assert bind(ask, 1, 8, 4, FIRST, 0) == OK, "it has none of the file's own pages"
    assert bind(ask, 2, 16, 4, FIRST, end - PAGE) in {EINVAL, EEXIST}, "but what it names, it has: 7.3 says EEXIST"
    assert ask("region", 0, 0, 0, 0, 0).result == OK
    assert bind(ask, 2, 16, 4, FIRST, end - PAGE) == OK, "a delete gives it back"


def test_a_range_is_bound_to_one_slot(ask: Ask) -> None:
    assert ask("guest_memfd", 4 * PAGE, 0).result == OK
    assert bind(ask, 0, 0, 2, FIRST, 0) == OK
    assert bind(ask, 1, 8, 2, FIRST, PAGE) in {EINVAL, EEXIST}  # 7.3 says EEXIST
    assert bind(ask, 1, 8, 2, FIRST, 2 * PAGE) == OK
    assert bind(ask, 2, 1, 1, FIRST, 0) == EEXIST  # the frames are looked at first
    assert ask("region", 0, 0, 0, 0, 0).result == OK
    assert bind(ask, 2, 0, 2, FIRST, 0) == OK


def test_a_slot_that_has_one_cannot_change(ask: Ask) -> None:
    assert ask("guest_memfd", 4 * PAGE, 0).result == OK
    assert bind(ask, 0, 0, 1, FIRST, 0) == OK
    assert bind(ask, 0, 0, 1, FIRST, 0) == EINVAL
    assert bind(ask, 0, 8, 1, FIRST, 0) == EINVAL
    assert ask("region", 0, 0, 0, PAGE, ARENA).result == EINVAL
    assert ask("region", 0, 0, 0, 0, 0).result == OK


def test_no_offset_between_pages() -> None:
    vm = KvmModel()
    file = vm.ioctl(CREATE_GUEST_MEMFD, CreateGuestMemfd(4 * PAGE).pack())
    for offset in range(1, PAGE):
        with pytest.raises(MemslotError) as caught:
            vm.ioctl(SET2, MemoryRegion(0, 4, 0, PAGE, ARENA, offset, file).pack2())
        assert caught.value.errno == -EINVAL
    assert vm.ioctl(SET2, MemoryRegion(0, 4, 0, PAGE, ARENA, 0, file).pack2()) == 0


def test_no_offset_between_pages_on_the_kernel(kernel: Kernel) -> None:
    with kernel.vm() as vm:
        assert vm.answer(Call("guest_memfd", (4 * PAGE, 0))).result == OK
        found = {vm.answer(Call("region2", (0, 4, 0, PAGE, ARENA, offset, FIRST, 0))) for offset in range(1, PAGE)}
        assert found == {Answer(EINVAL)}
        assert vm.answer(Call("region2", (0, 4, 0, PAGE, ARENA, 0, FIRST, 0))).result == OK


@pytest.mark.parametrize("half", [0, 2], ids=["front", "back"])
@pytest.mark.parametrize("where", ["frames", "file"])
def test_half_of_what_another_slot_has(ask: Ask, half: int, where: str) -> None:
    """Two slots, two halves of a file; the first goes, and cannot come back over a half of the second."""
    assert ask("guest_memfd", 16 * PAGE, 0).result == OK
    assert bind(ask, 0, 0, 4, FIRST, 0) == OK
    assert bind(ask, 1, 4, 4, FIRST, 4 * PAGE) == OK
    assert ask("region", 0, 0, 0, 0, 0).result == OK
    frames, offset = (2 + half * 2, 8) if where == "frames" else (100, 2 + half * 2)
    refused = bind(ask, 0, frames, 4, FIRST, offset * PAGE)
    assert refused == EEXIST if where == "frames" else refused in {EINVAL, EEXIST}  # 7.3 says EEXIST
    assert bind(ask, 0, 0, 4, FIRST, 0) == OK


def test_what_is_refused_later_binds_nothing(ask: Ask) -> None:
    assert ask("guest_memfd", 4 * PAGE, 0).result == OK
    assert bind(ask, 0, (1 << 40) - 1, 4, FIRST, 0) == EINVAL  # past the last frame
    assert bind(ask, 0, 0, 4, FIRST, 0) == OK


@pytest.mark.parametrize("side", ["model", "kernel"])
def test_files_of_other_kinds_and_of_other_vms(side: str, request: pytest.FixtureRequest) -> None:
    create = CreateGuestMemfd(4 * PAGE).pack()

    def region(file: int) -> bytes:
        return MemoryRegion(0, 4, 0, PAGE, ARENA, 0, file).pack2()

    ordinary = os.memfd_create("ordinary")
    os.truncate(ordinary, 4 * PAGE)
    try:
        if side == "model":
            one, other = KvmModel(), KvmModel()
            theirs = other.ioctl(CREATE_GUEST_MEMFD, create)
            one.files |= {1: other.files[theirs], 2: "an ordinary file"}
            for file in (1, 2):
                with pytest.raises(MemslotError) as caught:
                    one.ioctl(SET2, region(file))
                assert caught.value.errno == -EINVAL
            assert one.ioctl(SET2, region(one.ioctl(CREATE_GUEST_MEMFD, create))) == 0
            return
        kernel: Kernel = request.getfixturevalue("kernel")
        with kernel.vm() as this, kernel.vm() as that:
            theirs = kernel.ioctl(that.fd, CREATE_GUEST_MEMFD, create)
            assert theirs > 0
            ours = kernel.ioctl(this.fd, CREATE_GUEST_MEMFD, create)
            for file, expected in ((theirs, EINVAL), (ordinary, EINVAL), (0x7FFFFFFF, EBADF), (ours, OK)):
                assert kernel.ioctl(this.fd, SET2, region(file)) == expected
            os.close(theirs)
            os.close(ours)
    finally:
        os.close(ordinary)


@pytest.mark.parametrize(("size", "flags"), [(0, 0), (1, 0), (PAGE + 1, 0), (1 << 63, 0), (PAGE, 1 << 63), (PAGE, 16)])
def test_files_that_cannot_be_made(ask: Ask, size: int, flags: int) -> None:
    assert ask("guest_memfd", size, flags).result == EINVAL
