"""An ioctl takes bytes, a buffer, an address or a number: anything else is one line, and nothing has changed."""

from __future__ import annotations

import ctypes
import errno
from typing import Any

import numpy as np
import pytest

from abi_words import Ask
from guestmem import GuestmemError, MemslotError, UsageError
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.vm import KvmModel

NUMBERS = (
    MemoryIoctl.SET_NR_MMU_PAGES,
    MemoryIoctl.CREATE_VCPU,
    MemoryIoctl.RESET_DIRTY_RINGS,
    MemoryIoctl.CHECK_EXTENSION,
)
STRUCTURES = [request for request in MemoryIoctl if request not in NUMBERS]
NEITHER: tuple[Any, ...] = ("1", "x" * 32, 1.5, None, [0], (0,) * 32, {}, float("nan"), object)
REGION = MemoryRegion(3, 1, 0x1000, 0x2000, 0x7000).pack()


@pytest.fixture
def vm() -> KvmModel:
    made = KvmModel()
    made.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, REGION)
    return made


def unchanged(vm: KvmModel, request: Any, argument: Any) -> GuestmemError:
    before = list(vm.memslots), vm.memslots.generation(), vm.accounting.mmu_pages, len(vm.files), len(vm.dirty.rings)
    with pytest.raises(GuestmemError) as caught:
        vm.ioctl(request, argument)
    after = list(vm.memslots), vm.memslots.generation(), vm.accounting.mmu_pages, len(vm.files), len(vm.dirty.rings)
    assert after == before
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("argument", NEITHER, ids=lambda value: repr(value)[:20])
def test_neither_bytes_nor_a_number(vm: KvmModel, argument: object) -> None:
    for request in MemoryIoctl:
        error = unchanged(vm, request, argument)
        assert isinstance(error, UsageError)
        assert str(error).startswith(f"{request.name}: ")


@pytest.mark.parametrize("request_", STRUCTURES, ids=lambda request: request.name)
def test_bytes_of_another_length_are_efault(vm: KvmModel, request_: MemoryIoctl) -> None:
    """As a structure whose end is not mapped."""
    for length in {0, 1, request_.argument_bytes - 1, request_.argument_bytes + 1, 1000}:
        for made in (bytes, bytearray):
            assert unchanged(vm, request_, made(length)).errno == errno.EFAULT


@pytest.mark.parametrize("address", [-1, -(1 << 70), 0, 8, 1 << 62, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 200])
def test_addresses_where_nothing_is(vm: KvmModel, address: int) -> None:
    expected = errno.EFAULT if -1 << 63 <= address < 1 << 64 else errno.EINVAL
    for request in STRUCTURES:
        assert unchanged(vm, request, address).errno == expected


@pytest.mark.parametrize("number", [-(1 << 63) - 1, -(1 << 70), 1 << 64, 1 << 200])
def test_numbers_that_are_no_word(vm: KvmModel, number: int) -> None:
    for request in NUMBERS:
        assert unchanged(vm, request, number).errno == errno.EINVAL


def test_minus_one_is_the_largest_word(ask: Ask) -> None:
    assert ask("mmu_pages", -1).result == 0
    assert ask("extension", -1).result == 0
    assert ask("vcpu", -1).result == -errno.EINVAL
    assert ask("mmu_pages", -1 << 63).result == 0


@pytest.mark.parametrize("request_", ["1", 1.5, None, b"x", -1, 1 << 64])
def test_requests_that_are_none(vm: KvmModel, request_: object) -> None:
    assert unchanged(vm, request_, REGION).errno in {None, errno.EINVAL}
    assert unchanged(vm, 0xAE01, 0).errno == errno.ENOTTY


def test_any_buffer_and_any_whole_number() -> None:
    held = ctypes.create_string_buffer(REGION, len(REGION))
    words = np.frombuffer(REGION, "<u8")
    for argument in (bytearray(REGION), memoryview(REGION), held, words, np.uint64(ctypes.addressof(held))):
        vm = KvmModel()
        assert vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, argument) == 0  # type: ignore[arg-type] # what people pass
        assert [slot.id for slot in vm.memslots] == [3]
    assert KvmModel().ioctl(MemoryIoctl.CHECK_EXTENSION, np.int8(10)) == 32764  # type: ignore[arg-type]
    with pytest.raises(MemslotError, match="ENOTTY"):
        KvmModel().ioctl(np.int64(0xAE01), 0)  # type: ignore[arg-type]
