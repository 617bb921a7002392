"""Memory that is not there is EFAULT, never the end of the process: unmapped, without a right, past a file's end."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from guestmem.errors import MemslotError
from guestmem.process_memory import read_memory, write_memory
from guestmem.system import host_may_access

PAGE = mmap.PAGESIZE
SIZES = [1, 8, PAGE, PAGE + 1, 5 * PAGE]
"""Both ways: through the scratch page, and past it."""


def mapped(pages: int, prot: int) -> int:
    """Host address of anonymous memory that lives as long as the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, pages * PAGE, prot, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert address not in (None, (1 << 64) - 1)
    return int(address)


@pytest.fixture
def truncated() -> Iterator[int]:
    """Host address of a mapping whose file has become empty."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8 * PAGE)
    memory = mmap.mmap(fd, 8 * PAGE)
    os.ftruncate(fd, 0)
    os.close(fd)
    view = ctypes.c_char.from_buffer(memory)
    yield ctypes.addressof(view)
    del view
    memory.close()


def refused(address: int, size: int, *, read: bool, write: bool) -> None:
    """Both calls end as said, and so does the check of compiled code."""
    for call, allowed in (
        (lambda: read_memory(address, size), read),
        (lambda: write_memory(address, bytes(size)), write),
    ):
        if allowed:
            call()
        else:
            with pytest.raises(MemslotError) as caught:
                call()
            assert caught.value.errno == errno.EFAULT
            assert "\n" not in str(caught.value)
    assert host_may_access(address, False) == read
    assert host_may_access(address, True) == write


@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_mapped(size: int) -> None:
    refused(0x200000000000, size, read=False, write=False)


@pytest.mark.parametrize("size", SIZES)
def test_what_may_not_be_accessed(size: int) -> None:
    refused(mapped(8, 0), size, read=False, write=False)


@pytest.mark.parametrize("size", SIZES)
def test_what_may_only_be_read(size: int) -> None:
    refused(mapped(8, mmap.PROT_READ), size, read=True, write=False)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_past_the_end_of_its_file(truncated: int, size: int) -> None:
    refused(truncated, size, read=False, write=False)


@pytest.mark.parametrize("address", [8, -1, (1 << 63) - 4096, 1 << 63, (1 << 64) - 8, 1 << 70])
def test_addresses_that_no_process_has(address: int) -> None:
    for call in (lambda: read_memory(address, 8), lambda: write_memory(address, b"12345678")):
        with pytest.raises(MemslotError, match="EFAULT"):
            call()


@pytest.mark.parametrize("address", [0, 8, (1 << 47) - 8, 1 << 47, 1 << 63, (1 << 64) - 8])
def test_nothing_is_read_and_written_anywhere(address: int) -> None:
    assert read_memory(address, 0) == b""
    write_memory(address, b"")


@pytest.mark.parametrize("size", SIZES)
def test_what_is_there_is_read_and_written_whole(size: int) -> None:
    address = mapped(8, mmap.PROT_READ | mmap.PROT_WRITE) + 3
    content = bytes(place % 251 for place in range(size))
    write_memory(address, content)
    assert read_memory(address, size) == content
    assert ctypes.string_at(address - 3, size + 4) == bytes(3) + content + b"\0"


def test_a_range_whose_end_is_missing_is_refused(truncated: int) -> None:
    first = mapped(3, mmap.PROT_READ | mmap.PROT_WRITE)
    ctypes.CDLL(None).munmap(ctypes.c_void_p(first + PAGE), ctypes.c_size_t(PAGE))
    for size in (16, 2 * PAGE):
        with pytest.raises(MemslotError, match="EFAULT"):
            read_memory(first + PAGE - 8, size)


def test_a_child_of_fork_uses_a_page_of_its_own() -> None:
    """The scratch page is shared memory: a child that went on with its parent's would read what that reads."""
    held = ctypes.create_string_buffer(b"parent's", 16)
    read_memory(ctypes.addressof(held), 8)
    readable, writable = os.pipe()
    if not (child := os.fork()):
        ours = ctypes.create_string_buffer(b"child's!", 16)
        wrong = sum(read_memory(ctypes.addressof(ours), 8) != b"child's!" for _ in range(20_000))
        os.write(writable, str(wrong).encode())
        os._exit(0)
    wrong = sum(read_memory(ctypes.addressof(held), 8) != b"parent's" for _ in range(20_000))
    os.waitpid(child, 0)
    assert (wrong, os.read(readable, 16)) == (0, b"0")
    os.close(readable)
    os.close(writable)


def test_what_may_only_be_written_is_the_same_in_small_and_large() -> None:
    """x86 reads it all the same, and so do the kernel's copies; pages that are pinned to be read are not given."""
    size = 1 << 16
    held = mmap.mmap(-1, size)
    held[:] = bytes(range(256)) * (size // 256)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert not libc.mprotect(address, size, mmap.PROT_WRITE)
    small = b"".join(read_memory(address + place, 4096) for place in range(0, size, 4096))
    assert read_memory(address, size) == small
    write_memory(address, small[::-1])
    assert read_memory(address + 8, size - 8) == small[::-1][8:]
    assert not libc.mprotect(address + size // 2, 4096, 0)
    with pytest.raises(MemslotError, match=f"EFAULT: address {address:#x}: {size} bytes cannot be read"):
        read_memory(address, size)
    with pytest.raises(MemslotError, match=f"EFAULT: address {address:#x}: {size} bytes cannot be written"):
        write_memory(address, small)


def test_more_than_there_is_memory_for_is_enomem() -> None:
    with pytest.raises(MemslotError, match="ENOMEM"):
        read_memory(4096, 1 << 62)
