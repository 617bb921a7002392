"""Threads of random operations, most of them shared: nothing is leaked, freed twice or used after it was freed, counts
are exact, every lookup meanwhile finds the address that belongs there, and no vCPU's TLB uses what should be gone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chance import until_met
from guestmem.atomics import load_relaxed, poke
from guestmem.compiled import U64, Own, Words, compiled, own, u64, wrapping
from guestmem.stage2.arm import ArmFormat, arm_stage2
from guestmem.stage2.collapse import collapse_range
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.discipline import reclaim_tables
from guestmem.stage2.format import Annotations, Format
from guestmem.stage2.free_list import cache_topup
from guestmem.stage2.geometry import Geometry
from guestmem.stage2.layout import (
    CACHE_CAPACITY,
    EAGAIN,
    EBUSY,
    ENOENT,
    ENOMEM,
    FIND,
    LAST_LEVEL,
    LOCK_BASE,
    OK,
    PAGE_SHIFT,
    SHARED,
    STRIDE,
    VCPUS,
    WALKER,
)
from guestmem.stage2.locked import map_shared
from guestmem.stage2.npt import NptFormat
from guestmem.stage2.pool import Pool
from guestmem.stage2.protect import relax_permissions, write_protect_range
from guestmem.stage2.rwlock import read_lock, read_unlock, write_lock, write_unlock
from guestmem.stage2.split import split_range
from guestmem.stage2.table import DISCIPLINES, PageTable
from guestmem.stage2.tlb import Tlb
from guestmem.stage2.tlb_layout import HOST_ADDRESS as TLB_ADDRESS
from guestmem.stage2.tlb_layout import READ
from guestmem.stage2.tlb_walk import tlb_enter, tlb_leave, tlb_translate
from guestmem.stage2.unmap import unmap_range
from guestmem.stage2.walk import lookup_shared
from guestmem.stage2.words import Table
from guestmem.stage2.young import mark_young, young_range
from slices import only, sliced

OFFSET = 0x40_0000_0000
OPERATIONS = ("map", "lookup", "relax", "young", "collapse", "unmap", "split", "protect", "age")
FORMATS: dict[str, tuple[Callable[[], Format], int]] = {
    "arm-8-entries": (lambda: ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1), 22),
    "npt-8-entries": (lambda: NptFormat(Geometry(12, 3, 0, 24), 48, Annotations.LINUX_7_1), 18),
    "arm-4k": (lambda: arm_stage2(0x1000, 40), 24),
}
"""Format, and log2 of the range that the walkers use."""


@compiled(nogil=True)
def wander(
    shape: Own,
    pool: Words,
    pages: Words,
    mmu: Words,
    desk: Own,
    tlb: Own,
    seen: Own,
    seed: U64,
    times: U64,
    range_shift: U64,
    attributes: U64,
    offset: U64,
    exclusive: U64,
) -> U64:
    """``times`` random operations; returns the last random number.

    ``exclusive``: of 64 operations, how many are. ``seen``: how often each operation was OK, then EAGAIN, ENOMEM, wrong
    address, other status.
    """
    table = Table(shape, pool, pages, mmu, desk)
    one = u64(1)
    lock = load_relaxed(mmu, LOCK_BASE)
    done = u64(0)
    while done < times:
        done += one
        seed = seed ^ wrapping(seed << 13)
        seed = seed ^ (seed >> 7)
        seed = seed ^ wrapping(seed << 17)
        level = shape[LAST_LEVEL] - ((seed >> 8) % u64(3) if (seed >> 10) & u64(1) == 1 else u64(0))
        shift = shape[PAGE_SHIFT] + shape[STRIDE] * (shape[LAST_LEVEL] - level)
        if shift > range_shift:
            shift = range_shift
        ipa = ((seed >> 16) & ((one << range_shift) - one)) >> shift << shift
        size = one << shift
        # Of sixteen shared ones: 8 map, 1 access by TLB and hardware walk, 2 lookup, 2 relax, 2 young, 1 collapse.
        kind = (seed >> 40) & u64(15)
        operation = u64(0)
        status = u64(OK)
        if (seed >> 44) & u64(63) < exclusive:
            operation = u64(5) + (kind & u64(3))
            if operation == 6:
                cache_topup(shape, pool, pages, desk, desk[CACHE_CAPACITY])
            write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
            if operation == 5:
                status = unmap_range(table, ipa, size, u64(0))
            elif operation == 6:
                status = split_range(table, ipa, size, shape[LAST_LEVEL], u64(4))
            elif operation == 7:
                status = write_protect_range(table, ipa, size)
            else:
                status = young_range(table, ipa, size, True)
            write_unlock(mmu, lock)
        elif kind < 8:
            status = map_shared(table, ipa, size, offset + ipa, attributes, one, u64(0))
        elif kind == 8:
            tlb_enter(shape, pool, mmu, tlb)
            page = ipa | ((seed >> 20) & (size - one) & ~u64(0xFFF))
            if tlb_translate(shape, pool, mmu, tlb, page, page, READ) == OK:
                seen[14] += one
                if tlb[TLB_ADDRESS] != offset + page:
                    seen[12] += one
            tlb_leave(mmu, tlb)
        else:
            read_lock(mmu, lock, desk[WALKER])
            if kind < 11:
                operation = one
                status = lookup_shared(table, ipa + u64(8))
                if status == OK and desk[FIND + u64(2)] != offset + ipa + u64(8):
                    seen[12] += one
                if status == ENOENT:
                    status = u64(OK)
            elif kind < 13:
                operation = u64(2)
                status = relax_permissions(table, ipa, u64(2), SHARED)
            elif kind < 15:
                operation = u64(3)
                status = mark_young(table, ipa, SHARED)
            else:
                operation = u64(4)
                status = collapse_range(table, ipa, size, one, SHARED)
            read_unlock(mmu, lock, desk[WALKER])
        if status == OK:
            seen[operation] += one
        elif status == EAGAIN:
            seen[10] += one
        elif status == ENOMEM:
            seen[11] += one
            reclaim_tables(table, True)
        elif status == EBUSY:
            seen[11] += one
        else:
            seen[13] = status
    return seed


def stress(
    kind: str, discipline: str, threads: int, rng: random.Random, *, seconds: float, times: int, exclusive: int = 2
) -> list[int]:
    """Sums of what the walkers saw; checks the table every now and then, and at the end that all pages come back."""
    make, range_shift = FORMATS[kind]
    format_ = make()
    pool = Pool(160 if "8-entries" in kind else 64, base=0x1000_0000)
    table = PageTable(format_, pool, walkers=threads, discipline=discipline, cache=8, queue=1024)
    attributes = format_.attributes(Rights.READ)
    seeds = [rng.getrandbits(62) | 1 for _ in range(threads)]
    seen = [own(16) for _ in range(threads)]
    tlbs = [Tlb(table, walker, combined=16, leaves=16, walks=8, strict=True) for walker in range(threads)]
    failures: list[BaseException] = []

    def run(walker: int) -> None:
        try:
            seeds[walker] = int(
                wander(
                    *table.words,
                    table.desks[walker],
                    tlbs[walker].words,
                    seen[walker],
                    seeds[walker],
                    times,
                    range_shift,
                    attributes,
                    OFFSET,
                    exclusive,
                )
            )
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    end = time.monotonic() + seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        rounds += 1
        running = [threading.Thread(target=run, args=(walker,)) for walker in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert not failures, failures
        table.check()
        for tlb in tlbs:
            assert tlb.finding is None
            tlb.enter()
            tlb.leave()
            tlb.check()
    sums = [sum(int(each[word]) for each in seen) for word in range(16)]
    table.destroy()
    pool.check(held=[])
    assert sums[12] == 0, f"{sums[12]} lookups found another page's address"
    assert sums[13] == 0, f"status {sums[13]}"
    assert sums[14] > 0, "no access went through a TLB"
    assert sum(tlb.counts["dropped"] for tlb in tlbs) > 0
    return sums


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("kind", FORMATS)
def test_two_walkers(kind: str, discipline: str, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    sums = stress(kind, discipline, 2, rng, seconds=0, times=sized(200_000, 300))
    idle = [name for name, count in zip(OPERATIONS, sums, strict=False) if not count]
    assert idle == (["collapse"] if discipline == "rwlock" and "collapse" in idle else [])
    assert sums[10] > 0


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("threads", only([4], [2, 4]))
@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_for_some_time(discipline: str, threads: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    """For each number of threads, over all disciplines; GUESTMEM_STRESS_SECONDS makes it longer."""
    whole = float(os.environ.get("GUESTMEM_STRESS_SECONDS", sized(sliced(2, 30), 4)))
    for kind in FORMATS:
        seconds = whole / len(FORMATS) / len(DISCIPLINES)
        sums = stress(kind, discipline, threads, rng, seconds=seconds, times=sized(200_000, 200), exclusive=1)
        assert sums[0] > 0
        assert sums[10] > 0


@pytest.mark.slow
@pytest.mark.compiled_only
def test_a_page_freed_too_early_is_caught(seed: int) -> None:
    """Proof that the stress can fail. In a process of its own: a walk through a page that is gone may end anywhere."""
    tests = Path(__file__).parents[1]

    def crashed(attempt: int) -> bool:
        program = f"""
import random, sys
sys.path.insert(0, {str(tests)!r})
from stage2.test_stress_shared_walkers import stress_without_sections
stress_without_sections(random.Random({seed + attempt}))
"""
        return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode != 0

    until_met(crashed, "no walk met a page that was freed too early")


def stress_without_sections(rng: random.Random) -> None:
    """Two walkers for whom neither the writer's lock nor a grace period waits."""
    make, range_shift = FORMATS["arm-8-entries"]
    format_ = make()
    pool = Pool(160, base=0x1000_0000)
    table = PageTable(format_, pool, walkers=2, discipline="rcu", cache=8, queue=1024)
    attributes = format_.attributes(Rights.READ)
    seen = [own(16) for _ in range(2)]
    tlbs = [Tlb(table, walker, strict=True) for walker in range(2)]
    poke(table.mmu, int(VCPUS), 0)

    def run(walker: int) -> None:
        seed = rng.getrandbits(62) | 1
        words = *table.words, table.desks[walker], tlbs[walker].words, seen[walker]
        wander(*words, seed, 300_000, range_shift, attributes, OFFSET, 2)

    threads = [threading.Thread(target=run, args=(walker,)) for walker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not sum(int(each[12]) + int(each[13]) for each in seen)
    table.check()
