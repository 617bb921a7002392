"""Events of a vCPU whose stamps step back are put in order, those of one stamp as they came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guestmem.traces import events as events_of
from guestmem.traces.whereabouts import Track

if TYPE_CHECKING:
    import random


@pytest.mark.parametrize("most", [0, 20, events_of.MOST_MOVES])
def test_as_a_stable_sort_does(most: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_of, "MOST_MOVES", most)
    for _ in range(200):
        track, events, now = Track(), [], 0
        for number in range(rng.randrange(1, 80)):
            now += rng.choice((0, 1, 1))
            time = float(now - (rng.randrange(20) if rng.random() < 0.2 else 0))
            events.append((time, number))
            track.add(time, number)
        track.sort()
        assert list(zip(track.times, track.words, strict=True)) == sorted(events, key=lambda each: each[0])
