"""Stage-2 tables: map, look up, unmap, split, collapse; exclusive, shared, in two threads, by discipline.

Each figure is the best of repeated runs in this process, beside its goal, a plain-Python walker in the same run, and
two threads against one (median of pairs): on a table each for all, and on one table for shared maps. On a busy machine
run it before the rest; where the kernel groups by session, ``nice`` alone does not:
``setsid -w sh -c 'echo -15 > /proc/self/autogroup; nice -n -15 python benchmarks/bench_stage2.py'``.
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
from guestmem.stage2.layout import BBM_1, BBM_2, LOCK_BASE, OK, RESULT, SHARED, WALKER
from guestmem.stage2.locked import map_shared
from guestmem.stage2.map import map_range
from guestmem.stage2.pool import Pool
from guestmem.stage2.rwlock import read_lock, read_unlock
from guestmem.stage2.split import split_blocks
from guestmem.stage2.table import DISCIPLINES, PageTable
from guestmem.stage2.unmap import unmap_range
from guestmem.stage2.walk import lookup
from guestmem.stage2.words import Table
from plain_stage2 import PlainTable

GIB = 1 << 30
PAGE = 4096
BASE = 0x40_0000_0000
REPEAT = 5
ATTRIBUTES = arm_stage2(0x1000, 40).attributes(Rights.RWX)


@compiled(nogil=True)
def look_up_many(table: Table, start: U64, pages: U64, times: U64) -> U64:
    """Look up pages in a scattered order (``pages`` is a power of two); returns how many were there."""
    found = u64(0)
    at = u64(0)
    while at < times:
        page = (at * u64(7919)) & (pages - u64(1))
        if lookup(table, start + (page << 12)) == OK:
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
    table = Table(shape, pool, pages, mmu, desk)
    failed = u64(0)
    while ipa < end:
        if map_shared(table, ipa, size, ipa + offset, attributes, u64(3), u64(0)) != OK:
            failed += u64(1)
        ipa += step
    return failed


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


def map_pages(table: PageTable, pages: int, flags: int, level: int = 3, size: int = PAGE) -> None:
    status = map_range(table.at(0), GIB, pages * size, BASE, ATTRIBUTES, level, flags)
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


def apart(make: Callable[[], PageTable], run: Callable[[PageTable], object]) -> float:
    """How many times as much two threads do as one, each on a table of its own and a core: the median of five pairs."""
    cores = sorted(os.sched_getaffinity(0))
    ratios = []
    for _ in range(REPEAT):
        took = []
        for threads in (1, 2):
            tables = [make() for _ in range(threads)]
            meet = threading.Barrier(threads)
            times: list[float] = []

            def work(number: int, tables: list[PageTable], meet: threading.Barrier, times: list[float]) -> None:
                os.sched_setaffinity(0, {cores[number % len(cores)]})
                meet.wait()
                start = time.perf_counter()
                run(tables[number])
                times.append(time.perf_counter() - start)

            running = [threading.Thread(target=work, args=(each, tables, meet, times)) for each in range(threads)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            took.append(max(times))
            for table in tables:
                table.destroy()
        ratios.append(2 * took[0] / took[1])
    return statistics.median(ratios)


def row(name: str, value: float, unit: str, goal: str, plain: float = 0, two: float = 0) -> None:
    """A figure, its goal, how many times plain Python needs, and how many times as much two threads do as one."""
    beside = f"{plain / value:>7.0f} x" if plain else " " * 9
    threads = f"{two:>6.2f} x" if two else ""
    print(f"  {name:<50} {value:>9.2f} {unit:<8} {goal:<9} {beside} {threads}")


class Plain:
    """What the same costs in plain Python, in nanoseconds an entry."""

    def __init__(self) -> None:
        table, some = PlainTable(), 1 << 15
        self.map = seconds(lambda: table.map(GIB, some, BASE, ATTRIBUTES)) / some * 1e9
        self.lookup = seconds(lambda: [table.lookup(GIB + page * PAGE) for page in range(some)]) / some * 1e9
        self.collapse = seconds(lambda: table.collapse(GIB, some // 512)) / some * 1e9
        self.split = seconds(lambda: table.split(GIB, some // 512)) / some * 1e9
        self.unmap = seconds(lambda: table.unmap(GIB, some)) / some * 1e9
        self.blocks = seconds(lambda: table.map_blocks(2 * GIB, some, BASE, ATTRIBUTES)) / some * 1e9


def one_thread(plain: Plain) -> None:
    pages = GIB // PAGE

    def per_page(
        name: str,
        run: Callable[[PageTable], object],
        goal: str,
        beside: float,
        *,
        flags: int | None = None,
        discipline: str = "rcu",
    ) -> None:
        def make() -> PageTable:
            table = table_of(discipline)
            if flags is not None:
                map_pages(table, pages, flags)
            return table

        row(name, best(make, run) / pages * 1e9, "ns/page", goal, beside, apart(make, run))

    per_page("map 1 GiB of 4K pages, exclusive", lambda table: map_pages(table, pages, 0), "<= 12", plain.map)
    for discipline in DISCIPLINES:
        per_page(
            f"the same, shared, {discipline}",
            lambda table: map_pages(table, pages, int(SHARED)),
            "<= 90" if discipline == "walk_refs" else "<= 20",
            plain.map,
            discipline=discipline,
        )
    for discipline in DISCIPLINES:
        per_page(
            f"a call and the lock for each page, {discipline}",
            lambda table: map_stripes(*table.words, table.desks[0], GIB, 2 * GIB, PAGE, PAGE, BASE, ATTRIBUTES),
            "",
            plain.map,
            discipline=discipline,
        )
    blocks = 1 << 15

    def block_table() -> PageTable:
        return table_of(cache=100, pool_pages=256)

    def map_blocks(table: PageTable) -> None:
        map_pages(table, blocks, int(SHARED), 2, 512 * PAGE)

    value = best(block_table, map_blocks) / blocks * 1e9
    row(
        "map 64 GiB of 2M blocks, shared, rcu", value, "ns/block", "<= 30", plain.blocks, apart(block_table, map_blocks)
    )

    def unmap(table: PageTable, flags: int = 0) -> None:
        assert unmap_range(table.at(0), GIB, GIB, flags) == OK

    per_page("unmap 1 GiB of 4K pages", unmap, "<= 20", plain.unmap, flags=0)
    per_page("the same, one invalidation for all", lambda t: unmap(t, 128), "", plain.unmap, flags=0)

    def mapped_table() -> PageTable:
        table = table_of()
        map_pages(table, pages, 0)
        return table

    def look(table: PageTable, count: int) -> None:
        look_up_many(table.at(0), GIB, count, 1 << 18)

    table = mapped_table()
    for count, name in ((1 << 9, "warm, 2 MiB"), (1 << 13, "warm, 32 MiB"), (1 << 18, "scattered over 1 GiB")):
        look(table, count)
        value = min(seconds(partial(look, table, count)) for _ in range(REPEAT)) / (1 << 18) * 1e9
        two = apart(mapped_table, partial(look, count=count))
        row(f"lookup, {name}", value, "ns", "<= 15" if "warm" in name else "", plain.lookup, two)


def blocks(plain: Plain) -> None:
    pages = GIB // PAGE

    def with_blocks() -> PageTable:
        table = table_of()
        map_pages(table, 512, 0, 2, 512 * PAGE)
        return table

    def split(table: PageTable, flags: int = 0) -> None:
        assert split_blocks(table.at(0), GIB, GIB, 3, 1 << 30, flags) == OK
        assert table.desks[0][int(RESULT)] == 512

    def with_pages(discipline: str = "rcu") -> PageTable:
        table = table_of(discipline)
        map_pages(table, pages, 0)
        return table

    def collapse(table: PageTable, flags: int = 0, level: int = 2) -> None:
        assert collapse_range(table.at(0), GIB, GIB, level, flags) == OK
        assert table.desks[0][int(RESULT)] == (512 if level == 2 else 513)

    slow = plain.split * pages / 1e6
    ways = ((0, ""), (int(BBM_1), ", FEAT_BBM 1"), (int(BBM_2), ", FEAT_BBM 2"))
    for flags, how in ways:
        run: Callable[[PageTable], object] = partial(split, flags=flags)
        value = best(with_blocks, run) * 1e3
        row(f"split 1 GiB of 2M blocks into 4K pages{how}", value, "ms", "<= 6", slow, apart(with_blocks, run))
    slow = plain.collapse * pages / 1e6
    for flags, how in ways:
        run = partial(collapse, flags=flags)
        value = best(with_pages, run) * 1e3
        row(f"collapse 1 GiB of 4K pages into 2M blocks{how}", value, "ms", "<= 2", slow, apart(with_pages, run))
    row("the same, and these into one block", best(with_pages, partial(collapse, level=1)) * 1e3, "ms", "<= 2", slow)
    for discipline in ("rcu", "lock_subtree", "walk_refs"):
        made, run = partial(with_pages, discipline), partial(collapse, flags=int(SHARED))
        value, goal = best(made, run) * 1e3, "<= 2" if discipline == "rcu" else ""
        row(f"collapse shared, {discipline}, without the wait", value, "ms", goal, slow, apart(made, run))


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
            spread = f"from {min(ratios):.2f}, to {max(ratios):.2f}"
            row(f"two threads, one table, {name}, {discipline}", statistics.median(ratios), "times", goal)
            print(f"{spread:>80}")


def growth() -> None:
    print("  pages mapped at once: map exclusive, map shared, unmap (ns/page), plain Python's map, tables (KiB)")

    def make() -> PageTable:
        made = table_of(pool_pages=4096, cache=2040)
        map_range(made.at(0), 0, PAGE, 0, ATTRIBUTES, 3, 0)  # touches the first tables
        return made

    def unmap(table: PageTable, pages: int) -> None:
        assert unmap_range(table.at(0), GIB, pages * PAGE, 0) == OK

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
        slow = seconds(partial(PlainTable().map, GIB, pages, BASE, ATTRIBUTES)) / pages * 1e9
        print(f"    {pages:>8} {first:>9.1f} {second:>9.1f} {third:>9.1f} {slow:>9.1f} {used * 4:>8}")


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
    print("  figure, goal; plain Python takes so many times that; two threads, a table each, do so many times as much")
    plain = Plain()
    one_thread(plain)
    times = 1 << 20
    value = min(seconds(lambda: lock_many(table.mmu, table.desks[0], times)) for _ in range(REPEAT)) / times * 1e9
    row("the lock for reading, taken and dropped", value, "ns", "")
    blocks(plain)
    memory()
    growth()
    two_threads()


if __name__ == "__main__":
    main()
