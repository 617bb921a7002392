"""A guest_memfd slot: a file of this VM, a range inside it that no other slot has; then it can only be deleted."""

from __future__ import annotations

import pytest

from abi_words import ARENA, EBADF, EEXIST, EINVAL, OK, PAGE, Ask

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


@pytest.mark.parametrize(("size", "flags"), [(0, 0), (1, 0), (PAGE + 1, 0), (1 << 63, 0), (PAGE, 1 << 63), (PAGE, 16)])
def test_files_that_cannot_be_made(ask: Ask, size: int, flags: int) -> None:
    assert ask("guest_memfd", size, flags).result == EINVAL
