"""Deletes and creates of one address space form the transactions that they would form one after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from guestmem.traces import grouping
from guestmem.traces.columns import CREATE, DELETE, FLAGS_ONLY, IMPLIED, NO_SLOT, Changes

if TYPE_CHECKING:
    import random

    import pytest

GAP = 1 / 128
"""Of which sums are exact."""


def any_changes(rng: random.Random) -> Changes:
    changes, time = Changes(), 1.0
    codes = rng.choice(((CREATE, DELETE), (CREATE, DELETE), (CREATE, DELETE, DELETE | IMPLIED), (CREATE, FLAGS_ONLY)))
    for _ in range(rng.randrange(1, 40)):
        time += rng.choice((0.0, GAP / 4, GAP / 4, GAP, GAP * 1.5, -GAP, -GAP * 2))
        slot = rng.randrange(3) | (rng.random() < 0.01) << 16
        stamp = math.nan if rng.random() < 0.02 else time
        thread = rng.choice((7, 7, 7, 8, None))
        changes.append(slot, 0, 1, 0, 0, rng.choice(codes), NO_SLOT, 1, 0, thread, stamp, stamp, stamp)
    return changes


def test_of_any_changes(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    taken = 0
    for _ in range(600):
        changes = any_changes(rng)
        taken += grouping._is_plain(changes)
        at_once = grouping.group(changes, GAP)
        with monkeypatch.context() as patch:
            patch.setattr(grouping, "_is_plain", lambda _: False)
            one_by_one = grouping.group(changes, GAP)
        assert list(at_once) == list(one_by_one)
        assert at_once.pauses == one_by_one.pauses
    assert taken > 200
