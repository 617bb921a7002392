"""Size 0 deletes the slot with that id, whatever the other fields say; but they must be legal."""

from __future__ import annotations

import pytest

from abi_words import ARENA, EINVAL, OK, PAGE, Ask


@pytest.mark.parametrize("fields", [(0, 0, 0), (3, 5 * PAGE, ARENA + PAGE), (2, 0, 0x7FFF00000000), (1, 1 << 63, 0)])
def test_a_slot_is_deleted_by_its_id(ask: Ask, fields: tuple[int, int, int]) -> None:
    flags, gpa, hva = fields
    assert ask("region", 7, 0, 0, PAGE, ARENA).result == OK
    assert ask("region", 7, flags, gpa, 0, hva).result == OK
    assert ask("region", 7, flags, gpa, 0, hva).result == EINVAL  # it is gone
    assert ask("region", 8, 0, 0, PAGE, ARENA).result == OK  # and its frames are free


@pytest.mark.parametrize("fields", [(8, 0, 0), (4, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1 << 63)])
def test_what_is_illegal_is_refused_for_a_delete_too(ask: Ask, fields: tuple[int, int, int]) -> None:
    flags, gpa, hva = fields
    assert ask("region", 7, 0, 0, PAGE, ARENA).result == OK
    assert ask("region", 7, flags, gpa, 0, hva).result == EINVAL
    assert ask("region", 7, 0, 0, 0, 0).result == OK


def test_the_file_of_a_delete_is_not_looked_at(ask: Ask) -> None:
    """Nor whether the slot has one: the flag must be legal, and the offset aligned, and that is all."""
    assert ask("guest_memfd", PAGE, 0).result == OK
    for flags, file in ((0, 0), (4, 3)):
        assert ask("region2", 7, flags, 0, PAGE, ARENA, 0, file, 0).result == OK
        assert ask("region2", 7, 4, 0, 0, 0, 8, 0, 0).result == EINVAL
        assert ask("region2", 7, 4, 5 * PAGE, 0, ARENA, 1 << 63, 0, 0xFF).result == OK  # a file that is not open
        assert ask("region2", 7, 4, 0, 0, 0, 0, 3, 0).result == EINVAL  # it is gone
