"""Slots 0 to KVM_CAP_NR_MEMSLOTS - 1 can all be made, one more cannot; nor can absent address spaces."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from abi_words import ARENA, EINVAL, OK, PAGE, Ask
from slices import sliced

NR_MEMSLOTS = 10


@pytest.mark.slow
def test_all_slots_and_none_more(ask: Ask, sized: Callable[[int, int], int]) -> None:
    most = ask("extension", NR_MEMSLOTS).result
    assert most >= 509
    for slot in range(0, most, sized(sliced(16, 1), 300)):
        assert ask("region", slot, 0, slot * PAGE, PAGE, ARENA).result == OK
    assert ask("region", most, 0, most * PAGE, PAGE, ARENA).result == EINVAL
    assert ask("region", most - 1, 1, (most - 1) * PAGE, PAGE, ARENA).result == OK


@pytest.mark.parametrize("slot", [32764, 32766, 32767, 65535, 1 << 16, 2 << 16, 0xFFFF << 16])
def test_ids_beyond(ask: Ask, slot: int) -> None:
    assert ask("region", slot, 0, 0, PAGE, ARENA).result == EINVAL
    assert ask("region", slot, 0, 0, 0, 0).result == EINVAL
