"""However slots come and go, both trees stay sorted, exact and at least half full, and all their nodes come back."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem import Memslots
from guestmem.memslots.layout import NODES_USED, RECORDS_USED
from slices import sliced

pytestmark = pytest.mark.slow

ORDERS: dict[str, Callable[[random.Random, int], list[int]]] = {
    "ascending": lambda _rng, count: list(range(count)),
    "descending": lambda _rng, count: list(range(count))[::-1],
    "random": lambda rng, count: rng.sample(range(count), count),
    "outside in": lambda _rng, count: sorted(range(count), key=lambda i: -abs(2 * i - count)),
}


@pytest.mark.parametrize("node_words", [17, 19, 33])
@pytest.mark.parametrize("going", ORDERS)
@pytest.mark.parametrize("coming", ORDERS)
def test_fill_and_drain(
    coming: str, going: str, node_words: int, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    count = sized(sliced(75, 150), 60)
    memslots = Memslots(max_slots=count, node_words=node_words)
    empty = int(memslots.desk[int(NODES_USED)])
    for step, slot_id in enumerate(ORDERS[coming](rng, count)):
        memslots.create(slot_id, 2 * slot_id, 1 + slot_id % 2, (slot_id // 3) << 12)
        if step % 3 == 0:
            memslots.check()
    assert [slot.id for slot in memslots] == list(range(count))
    for step, slot_id in enumerate(ORDERS[going](rng, count)):
        memslots.delete(slot_id)
        if step % 3 == 0:
            memslots.check()
    memslots.check()
    assert memslots.desk[int(NODES_USED)] == empty == 4
    assert memslots.desk[int(RECORDS_USED)] == 0
