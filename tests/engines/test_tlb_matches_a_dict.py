"""The TLB is direct-mapped: it forgets what another frame of the same place pushed out, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

from guestmem.compiled import own
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.tlb import tlb_fill, tlb_flush, tlb_lookup

PLACES = 256
FRAMES = [0, 1, 2, 255, 256, 257, 511, 512, 1 << 20, (1 << 20) + 1, (1 << 52) - 1, (1 << 52) - 257]


def test_random_fills_lookups_and_flushes(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    mine = own(at.OWN_WORDS)
    naive: dict[int, tuple[int, int, bool]] = {}  # place -> frame, host, writable
    hits = 0
    for _ in range(sized(20_000, 4_000)):
        gfn = rng.choice(FRAMES) if rng.random() < 0.7 else rng.randrange(1 << 52)
        action = rng.random()
        if action < 0.45:
            host, writable = rng.randrange(1, 1 << 40) << 12, rng.random() < 0.5
            tlb_fill(mine, gfn, host, writable)
            naive[gfn % PLACES] = gfn, host, writable
        elif action < 0.995:
            writes = rng.random() < 0.5
            frame, host, writable = naive.get(gfn % PLACES, (-1, 0, False))
            wanted = host if frame == gfn and (writable or not writes) else 0
            assert tlb_lookup(mine, gfn, writes) == wanted, (gfn, writes)
            hits += wanted != 0
        else:
            tlb_flush(mine)
            naive.clear()
    assert hits > 100
    outside = [int(word) for word in (*range(int(at.TLB)), *range(int(at.TLB) + 2 * PLACES, at.OWN_WORDS))]
    assert not any(int(mine[word]) for word in outside), "it wrote outside its own words"


def test_frame_zero_is_no_entry_until_it_is_filled() -> None:
    mine = own(at.OWN_WORDS)
    assert tlb_lookup(mine, 0, False) == 0
    tlb_fill(mine, 0, 4096, False)
    assert (tlb_lookup(mine, 0, False), tlb_lookup(mine, 0, True)) == (4096, 0)
    tlb_flush(mine)
    assert tlb_lookup(mine, 0, False) == 0
