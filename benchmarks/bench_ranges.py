"""Values of ranges: time over number of ranges and over their length, beside other structures in the same run.

    python benchmarks/bench_ranges.py [--quick] [--json FILE] [--svg FOLDER] [--rangemap DIR]

Compiled structures are timed inside one compiled loop, Python's in a Python loop; the least of several rounds, taken
in turn. Stores are random ranges of 1 to 32 pages over random places, on a map of n ranges of 16 pages stored in random
order. All answer alike before and after the stores, or nothing is printed. superintervals is built of the same ranges
and looked up, if it is installed: it is static, and stores nothing. Rust's rangemap runs in a program of its own,
for each number of ranges right after the others: it is built here if there are cargo and the crate (--rangemap DIR, or
GUESTMEM_RANGEMAP).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guestmem.compiled import U64, Own, Words, compiled, const, u64, wrapping
from guestmem.ranges import RangeMap, range_map
from guestmem.ranges.layout import srcu_base
from guestmem.ranges.lookup import ranges_load
from guestmem.rcu import srcu_enter, srcu_exit
from interval_peer import Intervals
from plot import curves
from range_peers import NO_SUPERINTERVALS, PYTHON, SUPERINTERVALS, Flat, Ours, Radix, Static
from rust_peer import TO_GET_IT, NotRun, Rangemap

SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
LENGTH = 16
GIB, TIB = 1 << 18, 1 << 28  # in pages
GOALS = {
    "load": {100: 25, 10_000: 51, 1_000_000: 283},
    "store in place": {100: 361, 10_000: 524, 1_000_000: 1612},
    "store beside readers": {100: 1017, 10_000: 1892, 1_000_000: 4163},
}
_ONE = const(1)
Table = dict[str, dict[int, float]]


def timed(run: Callable[[], object]) -> float:
    """Nanoseconds of one call."""
    began = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - began


def least(runs: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, float]:
    """For each, the least time of ``calls`` operations in nanoseconds an operation, all taken in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            best[name] = min(best[name], timed(run) / calls)
    return best


def initial(n: int, rng: Any) -> Any:
    """n ranges of 16 pages in random order, values from 1 on: (first, last, value) rows, flat."""
    rows = np.empty((n, 3), np.uint64)
    rows[:, 0] = rng.permutation(n).astype(np.uint64) * LENGTH
    rows[:, 1] = rows[:, 0] + (LENGTH - 1)
    rows[:, 2] = rng.integers(1, 1 << 20, n)
    return rows


def random_stores(n: int, count: int, rng: Any) -> Any:
    rows = np.empty((count, 3), np.uint64)
    rows[:, 0] = rng.integers(0, LENGTH * n - 32, count)
    rows[:, 1] = rows[:, 0] + rng.integers(0, 32, count).astype(np.uint64)
    rows[:, 2] = rng.integers(1, 1 << 20, count)
    return rows.reshape(-1)


def agreed(structures: list[Any], indices: Any) -> int:
    """The sum of what is at the indices, the same in all."""
    sums = {each.name: each.loads(indices, len(indices)) for each in structures}
    assert len(set(sums.values())) == 1, f"they differ: {sums}"
    return int(next(iter(sums.values())))


def by_number(sizes: Sequence[int], rounds: int, rust: Rangemap | None = None) -> tuple[Table, Table, dict[int, float]]:
    """Loads and stores of the compiled structures by number of ranges; and bytes a range of ours."""
    loads: Table = {}
    stores: Table = {}
    nbytes: dict[int, float] = {}
    for n in sizes:
        rng = np.random.default_rng(n)
        count = 100_000
        structures: list[Any] = [Ours(n + 2 * count), Ours(n + 2 * count, readers=1), Intervals(n + 2 * count)]
        structures += [Radix(LENGTH * n)]
        structures += [Radix(LENGTH * n, blocks=True, stores=n + count * (rounds + 2))] if n <= 100_000 else []
        structures += [Flat(n + 2 * count)] if n <= 30_000 else []
        table = initial(n, rng)
        rows = table.reshape(-1)
        for each in structures:
            each.stores(rows, n)
        if n > 30_000:  # bisection for loads only: a store would move the whole array
            structures.append(flat := Flat(n))
            flat.stores(table[np.argsort(table[:, 0])].reshape(-1), n)
        nbytes[n] = structures[0].map.nbytes / len(structures[0].map)
        indices = rng.integers(0, LENGTH * n, count).astype(np.uint64)
        before = agreed(structures, indices)
        reading = {each.name: partial(each.loads, indices, count) for each in structures}
        for name, value in least(reading, rounds, count).items():
            loads.setdefault(name, {})[n] = value
        changes = random_stores(n, count, rng)
        storing = [each for each in structures if not (isinstance(each, Flat) and n > 30_000)]
        few = {each.name: 2_000 if isinstance(each, Flat) else count for each in storing}
        for each in storing:
            each.stores(changes, min(few.values()))
        agreed(storing, indices)
        writing = {each.name: partial(each.stores, changes, few[each.name]) for each in storing}
        times = least(writing, rounds, 1)
        for name, value in times.items():
            stores.setdefault(name, {})[n] = value / few[name]
        after = agreed([each for each in storing if few[each.name] == count], indices)
        if rust is not None:
            figures = rust.run(rows, changes, indices, rounds)
            assert figures[2:] == (before, after, len(structures[0].map)), f"{rust.name} differs: {figures}"
            loads.setdefault(rust.name, {})[n], stores.setdefault(rust.name, {})[n] = figures.load, figures.store
    return loads, stores, nbytes


def by_length(lengths: tuple[int, ...]) -> Table:
    """One range of so many pages flipped between two values, over one range: nanoseconds a flip."""
    table: Table = {}
    for pages in lengths:
        structures: list[Any] = [
            Ours(1000),
            Ours(1000, readers=1),
            Intervals(1000),
            Radix(TIB, blocks=True, stores=2000),
        ]
        if pages <= GIB:
            structures.append(Radix(GIB))
        for each in structures:
            repeat = 3 if isinstance(each, Radix) and pages > 4096 and not each.blocks else 200
            first = 0 if isinstance(each, Radix) and not each.blocks else 1 << 18
            rows = np.array([[first, first + pages - 1, 1 + flip % 2] for flip in range(repeat)], np.uint64).reshape(-1)
            each.stores(rows, repeat)
            best = min(timed(partial(each.stores, rows, repeat)) for _ in range(3))
            table.setdefault(each.name, {})[pages] = best / repeat
    return table


def each_of(load: Callable[[int], int], indices: list[int]) -> None:
    for index in indices:
        load(index)


def all_of(store: Callable[[int, int, int], None], rows: list[tuple[int, int, int]]) -> None:
    for first, last, value in rows:
        store(first, last, value)


def from_python(sizes: tuple[int, ...]) -> tuple[Table, Table]:
    """Loads and stores from Python, ours beside Python's structures."""
    loads: Table = {}
    stores: Table = {}
    for n in sizes:
        rng = np.random.default_rng(n)
        rows = [(int(first), int(last), int(value)) for first, last, value in initial(n, rng)]
        count = 2_000
        changes = [(int(a), int(b), int(value)) for a, b, value in random_stores(n, count, rng).reshape(-1, 3)]
        indices = [int(index) for index in rng.integers(0, LENGTH * n, count)]
        ours = RangeMap(capacity=4 * n + 10_000)
        for first, last, value in rows:
            ours.store(first, last + 1, value)
        structures = [kind() for kind in PYTHON if n <= 1000 or kind.__name__ != "Portions"]
        structures = [each for each in structures if n <= 10_000 or each.name != "intervaltree, chop and add"]
        for each in structures:
            if each.name == "portion.IntervalDict" and n > 100:
                continue
            for row in rows:
                each.store(*row)
        structures = [each for each in structures if n <= 100 or each.name != "portion.IntervalDict"]
        looking: dict[str, Callable[[], object]] = {"guestmem": partial(each_of, ours.get, indices)}
        looking |= {each.name: partial(each_of, each.load, indices) for each in structures}
        try:
            static = Static([(first, end - 1, value) for first, end, value in ours])
        except ImportError:
            pass
        else:
            assert [static.load(index) for index in indices] == [ours.get(index) for index in indices]
            looking[Static.name] = partial(each_of, static.load, indices)
        for name, time_of_one in least(looking, 3, count).items():
            loads.setdefault(name, {})[n] = time_of_one
        half_open = [(first, last + 1, value) for first, last, value in changes]
        stores.setdefault("guestmem", {})[n] = least({"": partial(all_of, ours.store, half_open)}, 3, count)[""]
        for each in structures:
            part = changes[: 100 if each.name == "portion.IntervalDict" else count]
            stores.setdefault(each.name, {})[n] = timed(partial(all_of, each.store, part)) / len(part)
    return loads, stores


class Beside(NamedTuple):
    """A reader's lookup, in nanoseconds, alone and beside stores; what it loses; stores a second that were made."""

    alone: float
    beside: float
    lost: float
    stores: float


@compiled(nogil=True)
def read_for_a_while(ranges: Words, srcu: U64, reader: U64, indices: Own, count: U64, rounds: U64) -> U64:
    """Sections of 16 lookups each, ``rounds`` times through ``count`` indices."""
    total = u64(0)
    done = u64(0)
    while done < rounds:
        at = u64(0)
        while at < count:
            srcu_enter(ranges, srcu, reader)
            stop = min(at + u64(16), count)
            while at < stop:
                total = wrapping(total + ranges_load(ranges, indices[at]))
                at += _ONE
            srcu_exit(ranges, srcu, reader)
        done += _ONE
    return total


def beside_stores(n: int, rate: int, pairs: int = 9) -> Beside:
    """What a reader's lookup takes alone and beside ``rate`` stores a second by another thread, in nanoseconds.

    In turn, so many times; of the loss, the median of the pairs. In the reader's own time on the processor: what else
    the machine has to do is not counted, what the stores take from its caches is. Each thread keeps to a core of its
    own, if there are two: on one they would share its caches.
    """
    allowed = sorted(os.sched_getaffinity(0))
    rng = np.random.default_rng(n)
    ours = Ours(n + 1_000_000, readers=1)
    ours.stores(initial(n, rng).reshape(-1), n)
    indices = rng.integers(0, LENGTH * n, 1 << 15).astype(np.uint64)
    changes = random_stores(n, 4096, rng)
    batch, stop, go, made = 20, threading.Event(), threading.Event(), [0]
    parts = [changes[3 * at : 3 * (at + batch)] for at in range(0, 4000, batch)]

    def storing() -> None:
        os.sched_setaffinity(0, {allowed[-1]})  # 0: this thread
        place = 0
        while go.wait() and not stop.is_set():
            began, first = time.perf_counter(), made[0]
            while go.is_set() and not stop.is_set():
                ours.stores(parts[place % len(parts)], batch)
                place += 1
                made[0] += batch
                if (ahead := (made[0] - first) / rate - (time.perf_counter() - began)) > 0:
                    time.sleep(ahead)

    def reading() -> float:
        rounds, began = max(1, 3_000_000 // len(indices) // (1 + n // 100_000)), time.thread_time_ns()
        read_for_a_while(ours.map.words, srcu_base(), 1, indices, len(indices), rounds)
        return (time.thread_time_ns() - began) / rounds / len(indices)

    thread = threading.Thread(target=storing)
    thread.start()
    os.sched_setaffinity(0, {allowed[0]})
    reading()
    alone, beside, rates = [], [], []
    for _ in range(pairs):
        alone.append(reading())
        go.set()
        time.sleep(0.01)
        began, before = time.perf_counter(), made[0]
        beside.append(reading())
        rates.append((made[0] - before) / (time.perf_counter() - began))
        go.clear()
    stop.set()
    go.set()
    thread.join()
    os.sched_setaffinity(0, allowed)
    lost = statistics.median(1 - one / two for one, two in zip(alone, beside, strict=True))
    return Beside(statistics.median(alone), statistics.median(beside), lost, statistics.median(rates))


def show(title: str, table: Table, goals: dict[str, dict[int, int]] | None = None) -> None:
    sizes = sorted({size for row in table.values() for size in row})
    print(f"\n{title}")
    print(f"{'':34}" + "".join(f"{size:>12,}" for size in sizes))
    for name, row in table.items():
        print(f"{name:34}" + "".join(f"{row[size]:>12,.0f}" if size in row else f"{'-':>12}" for size in sizes))
    for name, goal in (goals or {}).items():
        print(
            f"{'goal, ' + name:34}" + "".join(f"{goal[size]:>12,}" if size in goal else f"{'':>12}" for size in sizes)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three sizes, two rounds")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--svg", metavar="FOLDER", help="draw time over number of ranges and over length")
    parser.add_argument("--small-pages", action="store_true", help="big maps in pages of 4 KiB, as small ones are")
    parser.add_argument("--rangemap", metavar="DIR", help="sources of Rust's crate rangemap (or GUESTMEM_RANGEMAP)")
    options = parser.parse_args()
    if options.small_pages:
        range_map._HUGE = 1 << 60  # noqa: SLF001 - no map is so big
    sizes = (100, 1_000, 10_000) if options.quick else SIZES
    rounds = 2 if options.quick else 5

    with tempfile.TemporaryDirectory() as folder:
        rust, why = None, ""
        try:
            rust = Rangemap(Path(folder), options.rangemap)
        except ValueError as error:
            parser.error(str(error))
        except NotRun as error:
            why = str(error)
        loads, stores, nbytes = by_number(sizes, rounds, rust)
    if rust is None:
        loads["rangemap (Rust): not run"] = stores["rangemap (Rust): not run"] = {}
    show("random load, compiled, ns, by number of ranges", loads, {"load": GOALS["load"]})
    show(
        "random overwriting store, compiled, ns",
        stores,
        {name: GOALS[name] for name in ("store in place", "store beside readers")},
    )
    if rust is None:
        print(f"\nrangemap (Rust) was not run:\n{why}\n{TO_GET_IT}")
    print("\nbytes a range, built in random order: " + ", ".join(f"{n:,}: {size:.1f}" for n, size in nbytes.items()))

    lengths = by_length((1, 64, 4096, GIB) if options.quick else (1, 16, 256, 4096, 65_536, GIB, 16 * GIB, TIB))
    show("flip of one range, compiled, ns, by pages", lengths)
    page, ours = lengths["radix tree, an entry a page"][GIB], lengths["guestmem, in place"][GIB]
    print(
        f"1 GiB: page by page {page / 1e6:.2f} ms (limit 45), ours {ours:.0f} ns: {page / ours:,.0f} times (goal 1,000)"
    )

    python_loads, python_stores = from_python((100, 1_000) if options.quick else (100, 1_000, 10_000, 100_000))
    show("random load from Python, ns", python_loads)
    show("random overwriting store from Python, ns", python_stores)
    print(SUPERINTERVALS if Static.name in python_loads else NO_SUPERINTERVALS)

    print("\na reader's lookup beside 100,000 stores a second, ns")
    readers = {
        n: beside_stores(n, 100_000)
        for n in ((1_000, 10_000) if options.quick else (100, 1_000, 10_000, 100_000, 1_000_000))
    }
    for n, each in readers.items():
        print(
            f"{n:>11,} ranges: alone {each.alone:.0f}, beside {each.beside:.0f}: {100 * each.lost:.0f} % lost"
            f" (goal 20 from 10,000 on), at {each.stores:,.0f} stores a second"
        )

    if options.json:
        of_readers = {n: each._asdict() for n, each in readers.items()}
        Path(options.json).write_text(
            json.dumps(
                {
                    "loads": loads, "stores": stores, "bytes": nbytes, "lengths": lengths,
                    "python_loads": python_loads, "python_stores": python_stores, "readers": of_readers,
                    "rangemap": rust.version if rust else f"not run: {why}",
                },
                indent=2,
            )
        )  # fmt: skip
    if options.svg:
        pictures = Path(options.svg)
        pictures.mkdir(parents=True, exist_ok=True)
        for name, title, across, table in (
            ("loads", "random load", "ranges", loads),
            ("stores", "random overwriting store", "ranges", stores),
            ("lengths", "flip of one range", "pages of the range", lengths),
        ):
            series = {row: [(float(x), y) for x, y in values.items()] for row, values in table.items() if values}
            (pictures / f"ranges-{name}.svg").write_text(curves(title, across, "ns", series))
        print(f"\npictures: {pictures}/ranges-loads.svg, ranges-stores.svg, ranges-lengths.svg")


if __name__ == "__main__":
    main()
