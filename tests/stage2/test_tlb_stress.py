"""vCPU threads translate, fault and map while the table changes under them: no access goes through a stale entry."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from chance import until_met
from guestmem.compiled import U64, Own, Words, compiled, u64, wrapping
from guestmem.stage2 import Format, Pool, Rights, amd_npt, arm_stage2
from guestmem.stage2.arm import ArmFormat
from guestmem.stage2.format import Annotations
from guestmem.stage2.geometry import Geometry
from guestmem.stage2.locked import map_shared
from guestmem.stage2.table import DISCIPLINES, PageTable
from guestmem.stage2.tlb import Tlb
from guestmem.stage2.tlb_layout import CONFLICT, HOST_ADDRESS, OK, WRITE
from guestmem.stage2.tlb_walk import tlb_enter, tlb_leave, tlb_look, tlb_prefetch, tlb_speculate, tlb_translate
from guestmem.stage2.words import Table

HOST = 0x40_0000_0000
FORMATS: dict[str, Callable[[], Format]] = {
    "arm": lambda: arm_stage2(0x1000, 40),
    "npt": amd_npt,
    "arm-8-entries": lambda: ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1),
}


@compiled(nogil=True)
def touch(
    shape: Own,
    pool: Words,
    pages: Words,
    mmu: Words,
    desk: Own,
    tlb: Own,
    seen: Own,
    seed: U64,
    times: U64,
    frames: U64,
    block: U64,
    attributes: U64,
    offset: U64,
) -> U64:
    """A vCPU: ``times`` random accesses. ``seen``: accesses, faults, wrong addresses."""
    table = Table(shape, pool, pages, mmu, desk)
    one = u64(1)
    tlb_enter(shape, pool, mmu, tlb)
    done = u64(0)
    while done < times:
        seed = seed ^ wrapping(seed << 13)
        seed = seed ^ (seed >> 7)
        seed = seed ^ wrapping(seed << 17)
        ipa = ((seed >> 20) % frames) << 12
        if seed & u64(63) == 0:
            tlb_speculate(shape, pool, mmu, tlb, ((seed >> 30) % frames) << 12)
        elif seed & u64(63) == 1:
            tlb_prefetch(shape, pool, mmu, tlb, ipa)
        status = tlb_translate(shape, pool, mmu, tlb, ipa, ipa, WRITE)
        if status == OK:
            seen[0] += one
            done += one
            if tlb[HOST_ADDRESS] != offset + ipa:
                seen[2] += one
        elif status != CONFLICT:
            seen[1] += one
            tlb_leave(mmu, tlb)
            size = u64(0x1000)
            if seed & u64(0xF00) == 0:
                size = block
            start = ipa & ~(size - one)
            map_shared(table, start, size, offset + start, attributes, one, u64(0))
            tlb_enter(shape, pool, mmu, tlb)
        tlb_look(shape, pool, mmu, tlb)
    tlb_leave(mmu, tlb)
    return seed


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("name", FORMATS)
def test_no_stale_entry_is_used(
    name: str, discipline: str, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    made = FORMATS[name]()
    block = 1 << made.geometry.shift(2)
    table = PageTable(made, Pool(512), walkers=3, discipline=discipline, cache=16)
    tlbs = [Tlb(table, walker, combined=16, leaves=8, walks=4, strict=True, bbm=2) for walker in (1, 2)]
    attributes = made.attributes(Rights.RWX)
    seen = [tlb._new_words(1, 1, 1) for tlb in tlbs]
    frames = min(4 * block // 4096, 1024)
    touch(*table.words, table.desks[1], tlbs[0].words, seen[0], 1, 0, frames, block, attributes, HOST)  # compiles

    def met(_: int) -> bool:
        """Whether the table changed while they ran: this thread may have had no core meanwhile."""
        threads = [
            threading.Thread(
                target=touch,
                args=(*table.words, table.desks[tlb.walker], tlb.words, mine, rng.randrange(1, 1 << 64),
                      sized(300_000, 3000), frames, block, attributes, HOST),
                daemon=True,
            )
            for tlb, mine in zip(tlbs, seen, strict=True)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            ipa = rng.randrange(frames) * 4096
            action = rng.random()
            if action < 0.5:
                table.unmap(ipa, 4096, defer=rng.random() < 0.5, exact=rng.random() < 0.5)
            elif action < 0.7:
                table.unmap(ipa // block * block, block, defer=True)
            elif action < 0.9:
                table.collapse(0, 4 * block, bbm=rng.randrange(3))
            else:
                table.split(ipa // block * block, block, bbm=rng.randrange(3))
            threads[0].join(0.0005)
        table.reclaim()
        for tlb, mine in zip(tlbs, seen, strict=True):
            assert tlb.finding is None
            assert mine[2] == 0, "an access went to a wrong address"
            tlb.enter()
            tlb.check()
            tlb.leave()
        table.check()
        faults = sum(int(mine[1]) for mine in seen)
        return faults > 0 and sum(tlb.counts["by_range"] + tlb.counts["entry_flushes"] for tlb in tlbs) > 0

    until_met(met, "faults, and invalidations that a TLB took")
