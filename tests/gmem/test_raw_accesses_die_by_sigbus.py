"""A raw access of this process through a real mapping dies by SIGBUS where the host may not touch, and only there."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

import pytest

from gmem_files import PAGE
from guestmem import UsageError
from guestmem.errors import GuestMemfdError
from guestmem.gmem import GuestMemfd

Make = Callable[..., GuestMemfd]


def touch_in_a_child(address: int, *, write: bool = False) -> int:
    """The signal that ends a child that touches ``address``; 0 if none does."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        if write:
            ctypes.c_uint8.from_address(address).value = 0xEE
        _ = ctypes.c_uint8.from_address(address).value
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("generation", ["attributes", "shareability", "mappability"])
def test_private_pages(make: Make, generation: str, write: bool) -> None:
    file = make(4, states=generation)
    with file.mmap(0, 8 * PAGE, real=True) as host:
        ctypes.memset(host.address, 0xAA, 4 * PAGE)
        file.convert(PAGE, 2 * PAGE, private=True)
        died = [touch_in_a_child(host.address + page * PAGE + 8, write=write) for page in range(8)]
        assert died == [0, signal.SIGBUS, signal.SIGBUS, 0] + [signal.SIGBUS] * 4
        assert file.inode.backing.read(PAGE, 2 * PAGE) == b"\xaa" * 2 * PAGE, "the engine sees them, unchanged"
        file.convert(2 * PAGE, PAGE, private=False)
        assert touch_in_a_child(host.address + 2 * PAGE) == 0
        assert ctypes.c_uint8.from_address(host.address + 2 * PAGE).value == 0xAA


def test_a_child_that_had_it_mapped_before(make: Make) -> None:
    """It mapped and touched the page, then the parent converted: only the parent's mapping changed, so a real file's
    owner maps it in one process. What a child has from before is another mapping, which nobody can take away."""
    file = make(1)
    with file.mmap(real=True) as host:
        ctypes.memset(host.address, 0xAA, 1)
        file.convert(0, PAGE, private=True)
        assert touch_in_a_child(host.address) == signal.SIGBUS


def test_a_refused_conversion_bars_nobody(make: Make) -> None:
    file = make(4)
    with file.mmap(real=True) as host, file.pin(PAGE, PAGE):
        with pytest.raises(GuestMemfdError, match="EAGAIN"):
            file.convert(0, 4 * PAGE, private=True)
        assert [touch_in_a_child(host.address + page * PAGE) for page in range(4)] == [0] * 4


def test_files_that_are_private_at_first_and_poison(make: Make) -> None:
    file = make(2, 1)
    with file.mmap(real=True) as host:
        assert touch_in_a_child(host.address) == signal.SIGBUS
        file.convert(0, 2 * PAGE, private=False)
        assert touch_in_a_child(host.address) == 0
        file.fallocate(1, 0, PAGE)
        file.poison(0)
        assert [touch_in_a_child(host.address + page * PAGE) for page in range(2)] == [signal.SIGBUS, 0]


def test_a_hole_and_a_part_of_the_file(make: Make) -> None:
    file = make(8)
    with file.mmap(4 * PAGE, 2 * PAGE, real=True) as host:
        ctypes.memset(host.address, 0xAA, 2 * PAGE)
        file.punch(4 * PAGE, PAGE)
        assert ctypes.c_uint8.from_address(host.address).value == 0
        assert ctypes.c_uint8.from_address(host.address + PAGE).value == 0xAA
        file.convert(0, 5 * PAGE, private=True)
        assert [touch_in_a_child(host.address + page * PAGE) for page in range(2)] == [signal.SIGBUS, 0]


def test_a_mapping_that_is_not_real_has_no_address(make: Make) -> None:
    with make(1).mmap() as host, pytest.raises(UsageError, match="it is not real"):
        _ = host.address
