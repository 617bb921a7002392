"""KVM_MEM_READONLY of an existing slot cannot change, in no direction and in no company; logging can."""

from __future__ import annotations

import pytest

from abi_words import ARENA, EINVAL, OK, PAGE, Ask


@pytest.mark.parametrize(("was", "becomes"), [(0, 2), (2, 0), (1, 3), (3, 1), (1, 2), (3, 0)])
def test_readonly_stays(ask: Ask, was: int, becomes: int) -> None:
    assert ask("region", 0, was, 0, PAGE, ARENA).result == OK
    assert ask("region", 0, becomes, 0, PAGE, ARENA).result == EINVAL
    assert ask("region", 0, becomes, 4 * PAGE, PAGE, ARENA).result == EINVAL
    assert ask("region", 0, was ^ 1, 0, PAGE, ARENA).result == OK
