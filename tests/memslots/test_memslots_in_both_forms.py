"""Random programs leave the same words, bit by bit, in the compiled and in the interpreted form."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from guestmem import Change, MemslotError
from guestmem.explore import load
from guestmem.memslots.set import Memslots


def _step(memslots: Any, program: random.Random, count: int) -> object:
    """One random operation; what it returned or raised."""

    def change() -> Change:
        npages = program.choice((0, 0, 1, 2, 5))
        hva = 0x1000 * program.randrange(12)
        return Change(program.randrange(count), program.randrange(150), npages, hva, program.randrange(2))

    kind = program.randrange(6)
    try:
        if kind < 3:
            return str(memslots.apply(change()))
        if kind == 3:
            start, end = program.randrange(160), program.randrange(160)
            return list(memslots.overlapping(start, end)), memslots.by_hva(start << 9, end << 9), memslots.find(start)
        with memslots.update() as update:
            for slot_id in program.sample(range(count), program.randrange(3)):
                if memslots.by_id(slot_id) is not None:
                    update.invalidate(slot_id)
            update.publish()
            update.synchronize()
            for _ in range(program.randrange(8)):
                try:
                    update.stage(change())
                except MemslotError:
                    continue
            effects = [tuple(effect) for effect in update.net_effect()]
            if program.random() < 0.7:
                update.publish()
    except MemslotError as error:
        return str(error)
    return effects


@pytest.mark.parametrize("node_words", [17, 24, 64])
def test_same_words(node_words: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    program = rng.getrandbits(64)
    with load() as twin:
        real = Memslots(max_slots=40, node_words=node_words)
        copy = twin.room("memslots.set").Memslots(max_slots=40, node_words=node_words)
        assert type(copy) is not Memslots
        first, second = random.Random(program), random.Random(program)
        refused = effects = 0
        for step in range(sized(500, 200)):
            results = _step(real, first, 40), _step(copy, second, 40)
            assert results[0] == results[1], step
            refused += isinstance(results[0], str) and results[0].startswith("E")
            effects += isinstance(results[0], list) and bool(results[0])
            assert bytes(real._cells) == bytes(copy._cells), step
            assert bytes(memoryview(real.desk)) == bytes(copy.desk), step  # type: ignore[arg-type] # an ndarray
        assert refused > 10
        assert effects > 10
        real.check()
        copy.check()
