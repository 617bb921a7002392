"""An existing slot keeps its size and its host memory; setting it to what it is succeeds and does nothing."""

from __future__ import annotations

from abi_words import ARENA, EINVAL, OK, PAGE, Ask


def test_size_and_host_address_stay(ask: Ask) -> None:
    assert ask("region", 0, 0, 0, 4 * PAGE, ARENA).result == OK
    for size, hva in ((3, 0), (5, 0), (4, 1), (1, 3)):
        assert ask("region", 0, 0, 0, size * PAGE, ARENA + hva * PAGE).result == EINVAL
    assert ask("region", 0, 0, 0, 4 * PAGE, ARENA).result == OK
    assert ask("region", 0, 1, 9 * PAGE, 4 * PAGE, ARENA).result == OK  # moved and logged in one call
