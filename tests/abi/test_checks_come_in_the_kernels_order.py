"""Of several things that are wrong, the kernel names the first in its order; where errnos differ, that shows."""

from __future__ import annotations

import pytest

from abi_words import ARENA, EBADF, EEXIST, EFAULT, EINVAL, OK, PAGE, Ask
from guestmem import MemslotError
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.vm import KvmModel

CLOSED = 0


def test_flags_come_before_the_pointer_is_of_use(ask: Ask) -> None:
    for request in (MemoryIoctl.SET_USER_MEMORY_REGION, MemoryIoctl.SET_USER_MEMORY_REGION2):
        assert ask("bad_pointer", request).result == EFAULT


def test_overlap_comes_before_the_file(ask: Ask) -> None:
    assert ask("region", 0, 0, 0, 4 * PAGE, ARENA).result == OK
    assert ask("region2", 1, 4, PAGE, PAGE, ARENA, 0, CLOSED, 0).result == EEXIST
    assert ask("region2", 1, 4, 4 * PAGE, PAGE, ARENA, 0, CLOSED, 0).result == EBADF


def test_the_file_comes_before_the_last_frame(ask: Ask) -> None:
    assert ask("region2", 1, 4, 1 << 52, PAGE, ARENA, 0, CLOSED, 0).result == EBADF
    assert ask("region2", 1, 0, 1 << 52, PAGE, ARENA, 0, CLOSED, 0).result == EINVAL


def test_alignment_comes_before_overlap(ask: Ask) -> None:
    assert ask("region", 0, 0, 0, 4 * PAGE, ARENA).result == OK
    for gpa, size, hva in ((1, PAGE, ARENA), (0, PAGE + 1, ARENA), (0, PAGE, ARENA + 8)):
        assert ask("region", 1, 0, gpa, size, hva).result == EINVAL


def test_overlap_comes_before_the_last_frame(ask: Ask) -> None:
    assert ask("region", 0, 0, (1 << 52) - PAGE, PAGE, ARENA).result == OK
    assert ask("region", 1, 0, (1 << 52) - PAGE, 2 * PAGE, ARENA).result == EEXIST


@pytest.mark.parametrize("size", [PAGE - 1, (1 << 43), 1 << 63, (1 << 64) - PAGE])
def test_sizes_that_cannot_be(ask: Ask, size: int) -> None:
    assert ask("region", 0, 0, 0, size, 0).result == EINVAL


@pytest.mark.parametrize(("gpa", "size"), [((1 << 64) - PAGE, PAGE), ((1 << 64) - 2 * PAGE, 4 * PAGE), (1 << 52, PAGE)])
def test_guest_ranges_that_cannot_be(ask: Ask, gpa: int, size: int) -> None:
    assert ask("region", 0, 0, gpa, size, ARENA).result == EINVAL


def test_host_memory_need_not_be_there_but_must_be_below_the_end(ask: Ask) -> None:
    assert ask("region", 0, 0, 0, PAGE, 0).result == OK
    assert ask("region", 1, 0, PAGE, PAGE, (1 << 47) - 2 * PAGE).result == OK
    assert ask("region", 2, 0, 2 * PAGE, PAGE, 1 << 63).result == EINVAL


def test_padding_is_not_looked_at(ask: Ask) -> None:
    assert ask("region2", 0, 0, 0, PAGE, ARENA, 0, CLOSED, 0xFF).result == OK


def test_a_move_past_the_last_frame_may_overlap_where_it_was(ask: Ask) -> None:
    """Its own frames are no overlap; so it is the last frame that is named."""
    assert ask("region", 0, 0, (1 << 52) - 4 * PAGE, 4 * PAGE, ARENA).result == OK
    assert ask("region", 0, 0, (1 << 52) - 3 * PAGE, 4 * PAGE, ARENA).result == EINVAL
    assert ask("region", 1, 0, (1 << 52) - PAGE, PAGE, ARENA).result == EEXIST
    assert ask("region", 0, 0, (1 << 52) - 5 * PAGE, 4 * PAGE, ARENA).result == OK


def test_reaching_two_to_the_64_is_wrapping() -> None:
    vm = KvmModel()
    with pytest.raises(MemslotError, match=r"passes 2\*\*64"):
        vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, MemoryRegion(0, 0, (1 << 64) - 2 * PAGE, 2 * PAGE, ARENA).pack())
