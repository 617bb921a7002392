"""Each of 32 flags alone: the first form knows logging and read-only, the second guest_memfd, too, which goes alone."""

from __future__ import annotations

import pytest

from abi_words import ARENA, EBADF, EINVAL, OK, PAGE, Ask

CLOSED = 0


@pytest.mark.parametrize("bit", range(32))
def test_flags_of_the_first_form(ask: Ask, bit: int) -> None:
    assert ask("region", 0, 1 << bit, 0, PAGE, ARENA).result == (OK if bit < 2 else EINVAL)


@pytest.mark.parametrize("bit", range(32))
def test_flags_of_the_second_form(ask: Ask, bit: int) -> None:
    expected = OK if bit < 2 else EBADF if bit == 2 else EINVAL
    assert ask("region2", 0, 1 << bit, 0, PAGE, ARENA, 0, CLOSED, 0).result == expected


@pytest.mark.parametrize("flags", [5, 6, 7])
def test_guest_memfd_goes_with_no_other_flag(ask: Ask, flags: int) -> None:
    assert ask("guest_memfd", PAGE, 0).result == OK
    assert ask("region2", 0, flags, 0, PAGE, ARENA, 0, 3, 0).result == EINVAL
    assert ask("region2", 0, 4, 0, PAGE, ARENA, 0, 3, 0).result == OK
