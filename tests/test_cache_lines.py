"""Eight words at a time: counted as one by one, wherever the line lies, by unsigned comparison."""

from __future__ import annotations

import random

from guestmem.atomics import poke
from guestmem.cache_lines import count_at_most, prefetch
from guestmem.compiled import U64, Words, compiled, words


@compiled
def count(line: Words, at: U64, key: U64) -> U64:
    prefetch(line, at)
    return count_at_most(line, at, key)


def test_counts_what_a_loop_counts(rng: random.Random) -> None:
    edges = [0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    held = [rng.choice(edges) if rng.random() < 0.5 else rng.randrange(1 << 64) for _ in range(40)]
    line = words(40)
    for at, word in enumerate(held):
        poke(line, at, word)
    for at in range(33):
        for key in (*edges, *held[at : at + 8]):
            assert count(line, at, key) == sum(word <= key for word in held[at : at + 8])
