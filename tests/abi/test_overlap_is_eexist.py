"""Frames of another slot of the same address space are EEXIST; neighbours and shared host memory are not."""

from __future__ import annotations

from abi_words import ARENA, EEXIST, OK, PAGE, Ask


def test_frames_of_another_slot_are_eexist(ask: Ask) -> None:
    assert ask("region", 0, 0, 4 * PAGE, 4 * PAGE, ARENA).result == OK
    for first, count in ((4, 4), (3, 2), (7, 1), (7, 9), (1, 20), (5, 1)):
        assert ask("region", 1, 0, first * PAGE, count * PAGE, ARENA).result == EEXIST, (first, count)
    for slot, first, count in ((1, 3, 1), (2, 8, 1)):
        assert ask("region", slot, 0, first * PAGE, count * PAGE, ARENA).result == OK


def test_a_move_may_overlap_its_own_place_and_no_other(ask: Ask) -> None:
    assert ask("region", 0, 0, 4 * PAGE, 4 * PAGE, ARENA).result == OK
    assert ask("region", 1, 0, 10 * PAGE, 2 * PAGE, ARENA).result == OK
    assert ask("region", 0, 0, 5 * PAGE, 4 * PAGE, ARENA).result == OK
    assert ask("region", 0, 0, 7 * PAGE, 4 * PAGE, ARENA).result == EEXIST
    assert ask("region", 0, 0, 3 * PAGE, 4 * PAGE, ARENA).result == OK
