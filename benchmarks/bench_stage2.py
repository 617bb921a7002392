"""Stage-2 tables: map, look up, unmap, split, collapse; exclusive, shared, in two threads, by discipline.

Each figure is the best (one thread) or the median (two threads against one) of repeated runs in this process, beside a
plain-Python walker and the goal. On a busy machine run it before the rest; where the kernel groups by session, ``nice``
alone does not: ``setsid -w sh -c 'echo -15 > /proc/self/autogroup; nice -n -15 python benchmarks/bench_stage2.py'``.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

from guestmem.atomics import load_relaxed
from guestmem.compiled import U64, Own, Words, compiled, u64
from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.collapse import collapse_range
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.format import Format
from guestmem.stage2.free_list import cache_topup
from guestmem.stage2.layout import LOCK_BASE, OK, RESULT, SHARED, WALKER
from guestmem.stage2.locked import map_shared
from guestmem.stage2.map import map_range
from guestmem.stage2.pool import Pool
from guestmem.stage2.rwlock import read_lock, read_unlock
from guestmem.stage2.split import split_range
from guestmem.stage2.table import DISCIPLINES, PageTable
from guestmem.stage2.unmap import unmap_range
from guestmem.stage2.walk import lookup

GIB = 1 << 30
PAGE = 4096
BASE = 0x40_0000_0000
REPEAT = 5


@compiled(nogil=True)
def look_up_many(shape: Own, pool: Words, mmu: Words, desk: Own, start: U64, pages: U64, times: U64) -> U64:
    """Look up pages in a scattered order (``pages`` is a power of two); returns how many were there."""
    found = u64(0)
    at = u64(0)
    while at < times:
        page = (at * u64(7919)) & (pages - u64(1))
        if lookup(shape, pool, mmu, desk, start + (page << 12)) == OK:
            found += u64(1)
        at += u64(1)
    return found


@compiled(nogil=True)
def map_stripes(
    shape: Own,
    pool: Words,
    pages: Words,
    mmu: Words,
    desk: Own,
    ipa: U64,
    end: U64,
    size: U64,
    step: U64,
    offset: U64,
    attributes: U64,
) -> U64:
    """Map ``size`` bytes of every ``step``, a call and a lock each, as faults do; returns how many calls failed."""
    failed = u64(0)
    while ipa < end:
        if map_shared(shape, pool, pages, mmu, desk, ipa, size, ipa + offset, attributes, u64(3), u64(0)) != OK:
            failed += u64(1)
        ipa += step
    return failed


class PlainWalker:
    """The same map and lookup in plain Python over lists: what the compiled ones are measured against."""

    def __init__(self) -> None:
        self.root: list[object] = [None] * 1024

    def leaf_table(self, ipa: int) -> list[object]:
        table = self.root
        for shift, mask in ((30, 1023), (21, 511)):
            index = ipa >> shift & mask
            below = table[index]
            if below is None:
                below = table[index] = [None] * 512
            assert isinstance(below, list)
            table = below
        return table

    def map(self, ipa: int, pages: int, address: int, attributes: int) -> None:
        for page in range(pages):
            at = ipa + page * PAGE
            self.leaf_table(at)[at >> 12 & 511] = (address + page * PAGE) | attributes | 3

    def lookup(self, ipa: int) -> object:
        return self.leaf_table(ipa)[ipa >> 12 & 511]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def table_of(
    discipline: str = "rcu", *, pool_pages: int = 2048, cache: int = 1200, format_: Format | None = None
) -> PageTable:
    made = PageTable(format_ or arm_stage2(0x1000, 40), Pool(pool_pages), walkers=2, discipline=discipline, cache=cache)
    for desk in made.desks:
        cache_topup(made.shape, made.pool.words, made.pool.pages, desk, min(cache, pool_pages // 2 - 2))
    return made


ATTRIBUTES = arm_stage2(0x1000, 40).attributes(Rights.RWX)


def map_pages(table: PageTable, pages: int, flags: int, level: int = 3, size: int = PAGE) -> None:
    status = map_range(*table.words, table.desks[0], GIB, pages * size, BASE, ATTRIBUTES, level, flags)
    assert status == OK, status
    assert table.desks[0][int(RESULT)] == pages


def best(make: Callable[[], PageTable], run: Callable[[PageTable], object]) -> float:
    times = []
    for _ in range(REPEAT):
        table = make()
        times.append(seconds(lambda: run(table)))  # noqa: B023 - called at once
        table.check()
        table.destroy()
    return min(times)


def row(name: str, value: float, unit: str, goal: str, note: str = "") -> None:
    print(f"  {name:<46} {value:>9.2f} {unit:<8} {goal:<14} {note}")


def one_thread() -> None:
    pages = GIB // PAGE
    plain = PlainWalker()
    some = 1 << 15
    slow = seconds(lambda: plain.map(GIB, some, BASE, ATTRIBUTES)) / some * 1e9
    row("plain Python: map, a 4K page", slow, "ns", "")

    def per_page(run: Callable[[PageTable], object], *, flags: int | None = None, discipline: str = "rcu") -> float:
        def make() -> PageTable:
            table = table_of(discipline)
            if flags is not None:
                map_pages(table, pages, flags)
            return table

        return best(make, run) / pages * 1e9

    exclusive = per_page(lambda table: map_pages(table, pages, 0))
    row("map 1 GiB of 4K pages, exclusive", exclusive, "ns/page", "<= 12", f"{slow / exclusive:.0f} times plain Python")
    for discipline in DISCIPLINES:
        value = per_page(lambda table: map_pages(table, pages, int(SHARED)), discipline=discipline)
        goal = "<= 90" if discipline == "walk_refs" else "<= 20"
        row(f"the same, shared, {discipline}", value, "ns/page", goal, f"{slow / value:.0f} times plain Python")
    for discipline in DISCIPLINES:
        value = per_page(
            lambda table: map_stripes(*table.words, table.desks[0], GIB, 2 * GIB, PAGE, PAGE, BASE, ATTRIBUTES),
            discipline=discipline,
        )
        row(f"a call and the lock for each page, {discipline}", value, "ns/page", "")
    blocks = 1 << 15

    def block_table() -> PageTable:
        return table_of(cache=100, pool_pages=256)

    value = best(block_table, lambda table: map_pages(table, blocks, int(SHARED), 2, 512 * PAGE)) / blocks * 1e9
    row("map 64 GiB of 2M blocks, shared, rcu", value, "ns/block", "<= 30")

    def unmap(table: PageTable, flags: int = 0) -> None:
        assert unmap_range(*table.words, table.desks[0], GIB, GIB, flags) == OK

    value = per_page(unmap, flags=0)
    row("unmap 1 GiB of 4K pages", value, "ns/page", "<= 20")
    row("the same, one invalidation for all", per_page(lambda t: unmap(t, 128), flags=0), "ns/page", "")

    table = table_of()
    map_pages(table, pages, 0)

    def look(count: int) -> None:
        look_up_many(table.shape, table.pool.words, table.mmu, table.desks[0], GIB, count, 1 << 18)

    for count, name in ((1 << 9, "warm, 2 MiB"), (1 << 13, "warm, 32 MiB"), (1 << 18, "scattered over 1 GiB")):
        look(count)
        value = min(seconds(partial(look, count)) for _ in range(REPEAT)) / (1 << 18) * 1e9
        row(f"lookup, {name}", value, "ns", "<= 15" if "warm" in name else "")
    plain_look = seconds(lambda: [plain.lookup(GIB + page * PAGE) for page in range(some)]) / some * 1e9
    row("plain Python: lookup", plain_look, "ns", "")


def blocks() -> None:
    def with_blocks() -> PageTable:
        table = table_of()
        map_pages(table, 512, 0, 2, 512 * PAGE)
        return table

    def split(table: PageTable) -> None:
        assert split_range(*table.words, table.desks[0], GIB, GIB, 3, 1 << 30) == OK
        assert table.desks[0][int(RESULT)] == 512

    def with_pages() -> PageTable:
        table = table_of()
        map_pages(table, GIB // PAGE, 0)
        return table

    def collapse(table: PageTable, flags: int, level: int) -> None:
        assert collapse_range(*table.words, table.desks[0], GIB, GIB, level, flags) == OK
        assert table.desks[0][int(RESULT)] == (512 if level == 2 else 513)

    row("split 1 GiB of 2M blocks into 4K pages", best(with_blocks, split) * 1e3, "ms", "<= 6")
    row("collapse 1 GiB of 4K pages into 2M blocks", best(with_pages, lambda t: collapse(t, 0, 2)) * 1e3, "ms", "<= 2")
    row("the same, and these into one block", best(with_pages, lambda t: collapse(t, 0, 1)) * 1e3, "ms", "<= 2")
    for discipline in ("rcu", "lock_subtree", "walk_refs"):

        def made(discipline: str = discipline) -> PageTable:
            table = table_of(discipline)
            map_pages(table, GIB // PAGE, 0)
            return table

        value = best(made, lambda table: collapse(table, int(SHARED), 2)) * 1e3
        row(f"collapse shared, {discipline}, without the wait", value, "ms", "<= 2" if discipline == "rcu" else "")


def mapped_by(threads: int, discipline: str, stripe: int) -> float:
    """Seconds that ``threads`` take to map 8 GiB in pages; each maps its ``stripe`` bytes of all their stripes."""
    table = table_of(discipline, pool_pages=8192, cache=2100)
    meet = threading.Barrier(threads)
    cores = sorted(os.sched_getaffinity(0))

    def run(walker: int) -> None:
        os.sched_setaffinity(0, {cores[walker % len(cores)]})
        meet.wait()
        first = GIB + walker * stripe
        map_stripes(*table.words, table.desks[walker], first, 9 * GIB, stripe, stripe * threads, BASE, ATTRIBUTES)

    running = [threading.Thread(target=run, args=(walker,)) for walker in range(threads)]
    start = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    taken = time.perf_counter() - start
    table.check()
    table.destroy()
    return taken


def two_threads() -> None:
    """Faults of two vCPUs, each call with the lock: the median of ten pairs of runs, one thread and two."""
    for stripe, name in ((16 * PAGE, "64 KiB a call"), (PAGE, "a page a call")):
        for discipline in DISCIPLINES:
            ratios = [mapped_by(1, discipline, stripe) / mapped_by(2, discipline, stripe) for _ in range(10)]
            goal = ">= 1.5" if discipline in {"rcu", "rwlock"} else ""
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            row(f"two threads in turns, {name}, {discipline}", statistics.median(ratios), "times", goal, spread)


def growth() -> None:
    print("  pages mapped at once: map exclusive, map shared, unmap (ns/page), tables (KiB)")

    def make() -> PageTable:
        made = table_of(pool_pages=4096, cache=2040)
        map_range(*made.words, made.desks[0], 0, PAGE, 0, ATTRIBUTES, 3, 0)  # touches the first tables
        return made

    def unmap(table: PageTable, pages: int) -> None:
        assert unmap_range(*table.words, table.desks[0], GIB, pages * PAGE, 0) == OK

    def mapped(pages: int) -> PageTable:
        table = make()
        map_pages(table, pages, 0)
        return table

    for shift in range(0, 20, 2):
        pages = 1 << shift
        first = best(make, partial(map_pages, pages=pages, flags=0)) / pages * 1e9
        second = best(make, partial(map_pages, pages=pages, flags=int(SHARED))) / pages * 1e9
        third = best(partial(mapped, pages), partial(unmap, pages=pages)) / pages * 1e9
        table = mapped(pages)
        used = table.pool.used - sum(len(table.pool.cached(desk)) for desk in table.desks)
        table.destroy()
        print(f"    {pages:>8} {first:>9.1f} {second:>9.1f} {third:>9.1f} {used * 4:>8}")


def memory() -> None:
    table = PageTable(arm_stage2(0x1000, 44), Pool(4096), cache=64)
    table.map(0, 1 << 40, BASE, Rights.RWX, level=2)
    used = table.pool.used - len(table.pool.cached(table.desks[0]))
    row("tables of 1 TiB in 2M blocks", used * PAGE / 2**20, "MiB", "<= 5")
    table.destroy()


@compiled(nogil=True)
def lock_many(mmu: Words, desk: Own, times: U64) -> None:
    lock = load_relaxed(mmu, LOCK_BASE)
    at = u64(0)
    while at < times:
        read_lock(mmu, lock, desk[WALKER])
        read_unlock(mmu, lock, desk[WALKER])
        at += u64(1)


def main() -> None:
    start = time.perf_counter()
    table = table_of(pool_pages=64, cache=20)
    for shared in (False, True):
        table.map(GIB, GIB, GIB, Rights.RW, shared=shared)
        table.split(GIB, 4 * PAGE * 512)
        table.collapse(GIB, GIB, shared=shared)
        table.relax(GIB, Rights.RWX, shared=shared)
        table.unmap(GIB, GIB)
    table.destroy()
    lock_many(table.mmu, table.desks[0], 1)
    row("first use, compiled or from cache", time.perf_counter() - start, "s", "<= 40, 2")
    one_thread()
    times = 1 << 20
    value = min(seconds(lambda: lock_many(table.mmu, table.desks[0], times)) for _ in range(REPEAT)) / times * 1e9
    row("the lock for reading, taken and dropped", value, "ns", "")
    blocks()
    memory()
    growth()
    two_threads()


if __name__ == "__main__":
    main()
