"""Memory attributes as ioctls: which kernel has them of the VM, which of a file, and what each refuses, in order."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from abi_words import EBADF, EINVAL, Ask
from guestmem import MemslotError, UsageError
from guestmem.abi.checks import Host
from guestmem.abi.guest_memfds import GuestMemfd
from guestmem.abi.memory_attributes import FileIoctl, GmemConvert, MemoryAttributes, MemoryAttributes2
from guestmem.abi.model import KvmModel
from guestmem.abi.structures import CreateGuestMemfd, MemoryIoctl
from guestmem.abi.versions import (
    LINUX_6_12,
    LINUX_6_18,
    LINUX_7_3,
    LINUX_7_4,
    MAPPABILITY_V7,
    SHAREABILITY_RFC2,
    VERSIONS,
    KernelVersion,
)
from guestmem.errors import GuestMemfdError
from guestmem.vm import Vm, file_ioctl

PAGE = 0x1000
TOP = 1 << 64
ENOTTY = errno.ENOTTY
SET = MemoryIoctl.SET_MEMORY_ATTRIBUTES
SET2, SHARE, TAKE = FileIoctl.SET_MEMORY_ATTRIBUTES2, FileIoctl.GMEM_CONVERT_SHARED, FileIoctl.GMEM_CONVERT_PRIVATE


def model(version: KernelVersion = LINUX_7_4, **host: Any) -> tuple[KvmModel, int]:
    """A VM with private memory, and a file of 16 pages."""
    vm = KvmModel(Host(version=version, **{"private_memory": True, **host}))
    return vm, vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(16 * PAGE).pack())


def errno_of(call: Callable[[], object]) -> int:
    try:
        call()
    except (MemslotError, GuestMemfdError) as error:
        return error.errno or -1
    return 0


def states(vm: KvmModel, fd: int) -> list[int]:
    file = vm.files[fd]
    assert isinstance(file, GuestMemfd)
    return [file.state(page) for page in range(16)]


def test_numbers_and_structures() -> None:
    both, write = 3, 1
    requests: dict[MemoryIoctl | FileIoctl, tuple[int, int, int, int]] = {
        SET: (write, 32, 0xAE, 0xD2),
        SET2: (both, 128, 0xAE, 0xD2),
        SHARE: (both, 64, 0xAF, 0x41),
        TAKE: (both, 64, 0xAF, 0x42),
    }
    for request, (direction, size, magic, number) in requests.items():
        assert int(request) == direction << 30 | size << 16 | magic << 8 | number
        assert request.argument_bytes == size
    made = MemoryAttributes2(1, 2, 3, 4, 5, tuple(range(6, 17)))
    assert [int.from_bytes(made.pack()[at : at + 8], "little") for at in range(0, 128, 8)] == list(range(1, 17))
    for each in (made, MemoryAttributes(1, 2, 3, 4), GmemConvert(1, 2, 3)):
        assert type(each).unpack(each.pack()) == each
        with pytest.raises(UsageError, match="3 bytes; the structure has"):
            type(each).unpack(bytes(3))
    with pytest.raises(UsageError, match="reserved: -1 is not a whole number"):
        MemoryAttributes2(0, 0, reserved=(*[0] * 10, -1)).pack()
    with pytest.raises(UsageError, match="reserved: 2 words; there are 11"):
        MemoryAttributes2(0, 0, reserved=(0, 0)).pack()


@pytest.mark.parametrize(
    ("version", "host", "of_vm", "of_file", "converts"),
    [
        (LINUX_6_12, {}, 0, ENOTTY, ENOTTY),
        (LINUX_6_18, {}, 0, ENOTTY, ENOTTY),
        (LINUX_6_18, {"vm_attributes": False}, ENOTTY, ENOTTY, ENOTTY),
        (LINUX_7_3, {}, 0, ENOTTY, ENOTTY),
        (LINUX_7_4, {}, ENOTTY, 0, ENOTTY),
        (LINUX_7_4, {"vm_attributes": True}, errno.EINVAL, 0, ENOTTY),
        (LINUX_7_4, {"in_place_conversion": False}, 0, ENOTTY, ENOTTY),
        (MAPPABILITY_V7, {}, ENOTTY, ENOTTY, ENOTTY),
        (SHAREABILITY_RFC2, {}, ENOTTY, ENOTTY, 0),
    ],
    ids=str,
)
def test_which_kernel_has_which(
    version: KernelVersion, host: dict[str, Any], of_vm: int, of_file: int, converts: int
) -> None:
    vm, fd = model(version, **host)
    assert errno_of(lambda: vm.ioctl(SET, MemoryAttributes(0, PAGE, 8).pack())) == of_vm
    assert errno_of(lambda: vm.attributes.file_ioctl(fd, SET2, MemoryAttributes2(0, PAGE, 0).pack())) == of_file
    assert errno_of(lambda: vm.attributes.file_ioctl(fd, TAKE, GmemConvert(0, PAGE).pack())) == converts
    assert errno_of(lambda: vm.ioctl(SET2, MemoryAttributes2(0, PAGE, 0).pack())) == ENOTTY, "not of the VM"
    assert errno_of(lambda: vm.ioctl(SET, 8)) == (ENOTTY if of_vm == ENOTTY else errno.EFAULT)
    assert errno_of(lambda: vm.attributes.file_ioctl(fd, SET2, 8)) == (ENOTTY if of_file else errno.EFAULT)


REFUSED = [
    (0, PAGE, 8, 1),
    (0, PAGE, 1, 0),
    (0, PAGE, 8 | 1 << 63, 0),
    (0, 0, 8, 0),
    (TOP - PAGE, PAGE, 8, 0),
    (PAGE, TOP - PAGE, 8, 0),
    (1, PAGE, 8, 0),
    (0, PAGE + 1, 8, 0),
]


@pytest.mark.parametrize("asked", REFUSED)
def test_what_both_refuse_changes_nothing(asked: tuple[int, int, int, int]) -> None:
    vm, _ = model(LINUX_6_18)
    assert vm.ioctl(SET, MemoryAttributes(PAGE, PAGE, 8).pack()) == 0
    assert errno_of(lambda: vm.ioctl(SET, MemoryAttributes(*asked).pack())) == errno.EINVAL
    assert list(vm.attributes.of_vm.ranges) == [(1, 2, 8)]
    vm, fd = model(LINUX_7_4)
    assert vm.attributes.file_ioctl(fd, SET2, MemoryAttributes2(PAGE, PAGE, 0).pack()) == 0
    before = states(vm, fd)
    argument = bytearray(MemoryAttributes2(*asked, error_offset=77).pack())
    assert errno_of(lambda: vm.attributes.file_ioctl(fd, SET2, argument)) == errno.EINVAL
    assert states(vm, fd) == before == [8, 0, *[8] * 14]
    assert MemoryAttributes2.unpack(argument).error_offset == 77, "written only where the conversion itself fails"


def test_what_only_files_refuse() -> None:
    vm, fd = model(LINUX_7_4)
    for asked in (
        MemoryAttributes2(16 * PAGE, PAGE, 8),
        MemoryAttributes2(15 * PAGE, 2 * PAGE, 8),
        *(MemoryAttributes2(0, PAGE, 0, reserved=tuple(int(at == one) for at in range(11))) for one in range(11)),
    ):
        assert errno_of(lambda: vm.attributes.file_ioctl(fd, SET2, asked.pack())) == errno.EINVAL  # noqa: B023
    ordinary = KvmModel(Host(version=LINUX_7_4))
    file = ordinary.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(PAGE, 3).pack())
    for bits in (0, 8):
        asked = MemoryAttributes2(0, PAGE, bits)
        assert errno_of(lambda: ordinary.attributes.file_ioctl(file, SET2, asked.pack())) == errno.EINVAL  # noqa: B023


def test_which_files() -> None:
    vm, fd = model(LINUX_7_4)
    vcpu = vm.ioctl(MemoryIoctl.CREATE_VCPU, 0)
    asked = MemoryAttributes2(0, PAGE, 0).pack()
    assert errno_of(lambda: vm.attributes.file_ioctl(fd + 99, SET2, asked)) == errno.EBADF
    assert errno_of(lambda: vm.attributes.file_ioctl(vcpu, SET2, asked)) == ENOTTY
    assert errno_of(lambda: vm.attributes.file_ioctl(fd, 0xAE03, asked)) == ENOTTY
    assert errno_of(lambda: vm.attributes.file_ioctl(fd, SET2, asked[:-1])) == errno.EFAULT
    with pytest.raises(UsageError, match="SET_MEMORY_ATTRIBUTES2: 'x' is no bytes and no address"):
        vm.attributes.file_ioctl(fd, SET2, "x")  # type: ignore[arg-type] # that is the point


def test_the_series_of_may_2025() -> None:
    vm, fd = model(SHAREABILITY_RFC2)
    assert states(vm, fd) == [8] * 16
    assert vm.attributes.file_ioctl(fd, SHARE, GmemConvert(PAGE, 2 * PAGE).pack()) == 0
    assert states(vm, fd) == [8, 0, 0, *[8] * 13]
    assert vm.attributes.file_ioctl(fd, TAKE, GmemConvert(0, 0).pack()) == 0, "size 0 is no work"
    for wrong in (GmemConvert(0, PAGE, 1), GmemConvert(0, 17 * PAGE), GmemConvert(1, PAGE), GmemConvert(TOP - 1, 2)):
        assert errno_of(lambda: vm.attributes.file_ioctl(fd, TAKE, wrong.pack())) == errno.EINVAL  # noqa: B023


def test_the_vms_attributes_need_no_slot_and_no_bits_are_taken_without_private_memory() -> None:
    vm = KvmModel(Host(version=LINUX_6_18))
    assert vm.ioctl(SET, MemoryAttributes(1 << 50, 1 << 40, 0).pack()) == 0
    assert errno_of(lambda: vm.ioctl(SET, MemoryAttributes(0, PAGE, 8).pack())) == errno.EINVAL
    vm, _ = model(LINUX_6_18)
    held = ctypes.create_string_buffer(MemoryAttributes(0, 1 << 40, 8).pack(), 32)
    assert vm.ioctl(SET, ctypes.addressof(held)) == 0
    assert vm.attributes.is_private((1 << 28) - 1)
    assert not vm.attributes.is_private(1 << 28)


@pytest.mark.parametrize(("version", "request_", "made"), [
    (LINUX_7_4, SET2, lambda: MemoryAttributes2(0, 4 * PAGE, 8)),
    (SHAREABILITY_RFC2, TAKE, lambda: GmemConvert(0, 4 * PAGE)),
])  # fmt: skip
def test_a_pin_is_eagain_and_its_offset_is_written_back(
    version: KernelVersion, request_: FileIoctl, made: Callable[[], Any]
) -> None:
    with Vm(private_memory=True, version=version) as vm:
        file = vm.create_guest_memfd(4 * PAGE, 3)
        asked = made()
        in_place, by_address = bytearray(asked.pack()), ctypes.create_string_buffer(asked.pack(), len(asked.pack()))
        with file.pin(2 * PAGE, PAGE):
            for argument in (in_place, ctypes.addressof(by_address), asked.pack()):
                with pytest.raises(GuestMemfdError) as caught:
                    file_ioctl(file, request_, argument)
                assert (caught.value.errno, caught.value.error_offset) == (errno.EAGAIN, 2 * PAGE)
        for written in (bytes(in_place), by_address.raw):
            assert type(asked).unpack(written) == asked._replace(error_offset=2 * PAGE)
        assert [file.state(page) for page in range(4)] == ["shared"] * 4
        assert file_ioctl(file, request_, asked.pack()) == 0
        assert [file.state(page) for page in range(4)] == ["private"] * 4
        file.close()
        assert errno_of(lambda: file_ioctl(file, request_, asked.pack())) == errno.EBADF
    with Vm(private_memory=True, version=version) as vm:
        file = vm.create_guest_memfd(4 * PAGE, 3)
        with pytest.raises(UsageError, match="request: 'x' is not a whole number"):
            file_ioctl(file, "x", asked.pack())  # type: ignore[arg-type] # that is the point
        with pytest.raises(MemslotError, match="ENOTTY"):
            file_ioctl(file, -5, asked.pack())
        with pytest.raises(UsageError, match=r"states: \['x'\] is not one of"):
            vm.create_guest_memfd(PAGE, states=["x"])  # type: ignore[call-overload] # that is the point
    with pytest.raises(UsageError, match="file: 7 is no guest_memfd of a VM"):
        file_ioctl(7, request_, asked.pack())


STATES = dict.fromkeys(VERSIONS[:3], "vm-attributes") | {
    LINUX_7_4: "attributes",
    MAPPABILITY_V7: "mappability",
    SHAREABILITY_RFC2: "shareability",
}


@pytest.mark.parametrize(("version", "name"), STATES.items(), ids=str)
@pytest.mark.parametrize("private", [False, True])
def test_a_vm_has_the_states_of_its_version_and_no_others(version: KernelVersion, name: str, private: bool) -> None:
    with Vm(private_memory=private, version=version) as vm:
        made = [vm.create_guest_memfd(PAGE), vm.create_guest_memfd(PAGE, states=name)]
        fd = vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(PAGE).pack())
        assert [file.inode.generation.NAME for file in made] == [name] * 2
        assert len(vm.model.files) == 4, "a vCPU, and these"
        for other in {*STATES.values()} - {name}:
            with pytest.raises(UsageError, match=f"states: files of .* have {name}; {other} is of "):
                vm.create_guest_memfd(PAGE, states=other)
        with pytest.raises(UsageError, match="states: 'none' is not one of attributes, vm-attributes, "):
            vm.create_guest_memfd(PAGE, states="none")
        assert len(vm.model.files) == 4, "what is refused leaves none"
        assert fd in vm.model.files


def test_the_tree_of_a_vendor_has_what_its_base_has() -> None:
    assert Host(version=replace(LINUX_7_4, tree="amazon")).file_states == "attributes"


# -- on this machine's kernel, too ------------------------------------------------------------------------------------


def test_a_file_of_this_kernel(ask: Ask) -> None:
    """Up to 7.3 there is no such ioctl; from 7.4 on a default VM has no private memory: EINVAL."""
    assert ask("guest_memfd", 4 * PAGE, 0).result == 0
    for asked in ((3, 0, PAGE, 0, 0, 0), (3, 0, PAGE, 8, 0, 0), (3, 0, 0, 1, 1, 1)):
        assert ask("file_attributes", *asked).result in {-ENOTTY, EINVAL}
    assert ask("file_attributes", 0, 0, PAGE, 0, 0, 0).result == EBADF
    assert ask("file_attributes", 2, 0, PAGE, 0, 0, 0).result == -ENOTTY


@pytest.mark.parametrize("asked", [*REFUSED, (0, PAGE, 8, 0), (0, PAGE, 0, 0)])
def test_a_vm_of_this_kernel(ask: Ask, asked: tuple[int, int, int, int]) -> None:
    """Where it is not built all is ENOTTY; where it is, a default VM has no attributes, and only 0 is taken."""
    answer, there = ask("attributes", *asked).result, ask("attributes", 0, PAGE, 0, 0).result
    assert there in {0, -ENOTTY}
    assert answer == (there or (0 if asked == (0, PAGE, 0, 0) else EINVAL))
