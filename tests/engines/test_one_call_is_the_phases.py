"""A batch in one call leaves slots, translations and counts as the phases do: random batches, some pages faulted in."""

from __future__ import annotations

import random

import pytest

from guestmem.designs import find
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft.pre_fault import pre_fault_memory
from guestmem.errors import MemslotError
from guestmem.memslots import KVM_MEM_READONLY, Change

PAGE, HVA, FRAMES = 4096, 0x7F0000000000, 1100
"""Frames: more than two blocks of 2 MiB, so that zaps cut blocks and take whole tables away."""


def batch(rng: random.Random, ids: list[int]) -> list[Change]:
    """Slots that are there go, others come, most with the memory that their frames had; some batches are refused."""
    changes = [Change(slot) for slot in ids if rng.random() < 0.9]
    cuts = sorted(rng.sample([0, 8, 16, 256, 512, 520, 768, 1024, FRAMES], 2 * rng.randrange(1, 4)))
    for slot, (start, end) in enumerate(zip(cuts[::2], cuts[1::2], strict=True)):
        hva = HVA + (start + (FRAMES * 4 if rng.random() < 0.3 else 0)) * PAGE
        changes.append(Change(slot, start, end - start, hva, KVM_MEM_READONLY * (rng.random() < 0.2)))
    return changes


def state(engine: SoftEngine) -> tuple[object, ...]:
    table, counts = engine.stage2.tables[0], engine.counts
    return (
        list(engine.memslots),
        [table.lookup(gfn * PAGE) for gfn in (*range(0, FRAMES, 8), *range(24), *range(505, 525))],
        (counts.swaps, counts.ranges_in_flux, counts.zaps, counts.flushes, counts.kicks),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.compiled_only
def test_random_batches(seed: int) -> None:
    rng = random.Random(seed)
    done = 0
    with SoftEngine(1) as short, SoftEngine(1) as long:
        short.short_cut, long.short_cut = True, False
        engines = short, long
        apply = [find("atomic").prepare(engine) for engine in engines]
        for number in range(60):
            changes = batch(rng, [slot.id for slot in long.memslots])
            ends = []
            for engine, do in zip(engines, apply, strict=True):
                try:
                    do(engine, changes)
                    ends.append("")
                except MemslotError as error:
                    ends.append(f"{error.errno} {error}")
            assert ends[0] == ends[1], f"seed {seed}, {number}: {changes}"
            done += not ends[0]
            gpa, size = rng.randrange(FRAMES) * PAGE, rng.choice([PAGE, 16 * PAGE, 64 * PAGE])
            for engine in engines:
                try:
                    pre_fault_memory(engine, 0, gpa, size)
                except MemslotError:
                    continue
            states = [state(engine) for engine in engines]
            for one, other in zip(*states, strict=True):
                assert one == other, f"seed {seed}, {number}: {changes}"
        for engine in engines:
            engine.memslots.check()
            engine.stage2.check()
        taken = short.counts.zaps
    assert 10 < done < 60
    assert taken > 100
