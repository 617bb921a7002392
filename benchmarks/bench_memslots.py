"""Memslots: lookups, changes and memory at ten sizes, beside three peers in the same run.

    python benchmarks/bench_memslots.py [--json FILE] [--quick]

Peers: a ``SortedDict`` index by base (sortedcontainers), ``intervaltree``, and ``portion.IntervalDict`` (which rebuilds
itself on each change, so only at small sizes). They have no second set, no ids, no generations and no other threads.
Times are medians; a ratio is the peer's time by ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import portion
from intervaltree import IntervalTree
from sortedcontainers import SortedDict

from guestmem.compiled import U64, Own, Words, compiled, const, own, u64
from guestmem.memslots import Memslots, Slot
from guestmem.memslots.lookup import find

SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000, 16_000, 24_000, 32_764)
LIMITS = {
    "compiled lookup at 32764 [ns]": 60.0,
    "lookup from Python at 32764 [us]": 1.5,
    "create at 10 [us]": 6.0,
    "delete at 10 [us]": 6.0,
    "create at 32764 [us]": 15.0,
    "delete at 32764 [us]": 15.0,
    "memory, ascending [bytes/slot]": 400.0,
    "memory, random order [bytes/slot]": 400.0,
}
PORTION_UP_TO = 300
HOST = 0x7F00_0000_0000
PAGES = 4
_ONE = const(1)
_MASK = const((1 << 16) - 1)


@compiled(nogil=True)
def look(memslots: Words, gfns: Own, count: U64, dependent: bool) -> U64:
    """``count`` lookups of random frames; ``dependent``: each waits for the one before."""
    total = u64(0)
    index = u64(0)
    record = u64(0)
    while index < count:
        at = index + (record >> 40) if dependent else index  # which adds 0, but only this program's reader knows
        record = find(memslots, u64(0), gfns[at & _MASK])
        total += record
        index += _ONE
    return total


def median_us(run: Callable[[Any], object], inputs: list[Any], batch: int = 1) -> float:
    """Median time of a call in microseconds, in batches of ``batch`` calls."""
    times = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        began = time.perf_counter_ns()
        for each in part:
            run(each)
        times.append((time.perf_counter_ns() - began) / len(part) / 1000)
    return statistics.median(times)


def slots_of(count: int) -> list[Slot]:
    """``count`` slots of four pages, one page apart."""
    return [Slot(0, i, (PAGES + 1) * i, PAGES, HOST + (PAGES << 12) * i) for i in range(count)]


def fill(slots: list[Slot]) -> Memslots:
    """Memslots with these slots, made in this order."""
    memslots = Memslots()
    for slot in slots:
        memslots.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
    return memslots


def ours(slots: list[Slot], rng: random.Random, rounds: int) -> dict[str, float]:
    """Our figures at one size."""
    memslots = fill(slots)
    gfns = own(1 << 16)
    frames = [rng.choice(slots).base_gfn + rng.randrange(PAGES) for _ in range(1 << 16)]
    for index, gfn in enumerate(frames):
        gfns[index] = gfn
    result = {}
    for name, dependent in (("compiled", False), ("dependent", True)):
        times = []
        for _ in range(7):
            began = time.perf_counter_ns()
            look(memslots.words, gfns, 1 << 17, dependent)
            times.append((time.perf_counter_ns() - began) / (1 << 17))
        result[name + "_ns"] = statistics.median(times)
    result["python_us"] = median_us(memslots.find, frames[:rounds], 50)
    created, deleted = [], []
    for slot in rng.choices(slots, k=rounds):
        a = time.perf_counter_ns()
        memslots.delete(slot.id)
        b = time.perf_counter_ns()
        memslots.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
        c = time.perf_counter_ns()
        deleted.append((b - a) / 1000)
        created.append((c - b) / 1000)
    result["create_us"], result["delete_us"] = statistics.median(created), statistics.median(deleted)
    memslots.check()
    return result


def sorted_dict(slots: list[Slot], frames: list[int], changed: list[Slot]) -> dict[str, float]:
    """A SortedDict by base gfn: look for the last base at most the frame; a create checks for overlap."""
    index = SortedDict({slot.base_gfn: slot for slot in slots})
    keys = index.keys()

    def find_(gfn: int) -> Slot | None:
        at = index.bisect_right(gfn)
        slot = index[keys[at - 1]] if at else None
        return slot if slot is not None and gfn < slot.end_gfn else None

    def delete(slot: Slot) -> None:
        del index[slot.base_gfn]

    def create(slot: Slot) -> None:
        at = index.bisect_left(slot.end_gfn)
        if at and index[keys[at - 1]].end_gfn > slot.base_gfn:
            raise ValueError(slot)
        index[slot.base_gfn] = slot

    return _peer(find_, create, delete, frames, changed)


def interval_tree(slots: list[Slot], frames: list[int], changed: list[Slot]) -> dict[str, float]:
    """An IntervalTree of slots."""
    tree = IntervalTree.from_tuples([(slot.base_gfn, slot.end_gfn, slot) for slot in slots])

    def create(slot: Slot) -> None:
        if tree.overlaps(slot.base_gfn, slot.end_gfn):
            raise ValueError(slot)
        tree.addi(slot.base_gfn, slot.end_gfn, slot)

    def delete(slot: Slot) -> None:
        tree.removei(slot.base_gfn, slot.end_gfn, slot)

    return _peer(tree.at, create, delete, frames, changed)


def portions(slots: list[Slot], frames: list[int], changed: list[Slot]) -> dict[str, float]:
    """A portion.IntervalDict of slots; a slot is a value, so it must not be equal to its neighbours."""
    index = portion.IntervalDict()
    for slot in slots:
        index[portion.closedopen(slot.base_gfn, slot.end_gfn)] = slot

    def create(slot: Slot) -> None:
        index[portion.closedopen(slot.base_gfn, slot.end_gfn)] = slot

    def delete(slot: Slot) -> None:
        del index[portion.closedopen(slot.base_gfn, slot.end_gfn)]

    return _peer(index.get, create, delete, frames, changed)


def _peer(
    find_: Callable[[int], object],
    create: Callable[[Slot], None],
    delete: Callable[[Slot], None],
    frames: list[int],
    changed: list[Slot],
) -> dict[str, float]:
    created, deleted = [], []
    looked = median_us(find_, frames, 50)
    for slot in changed:
        a = time.perf_counter_ns()
        delete(slot)
        b = time.perf_counter_ns()
        create(slot)
        c = time.perf_counter_ns()
        deleted.append((b - a) / 1000)
        created.append((c - b) / 1000)
    return {
        "python_us": looked,
        "create_us": statistics.median(created),
        "delete_us": statistics.median(deleted),
    }


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(order: list[Slot]) -> float:
    """Resident growth in bytes a slot, from no Memslots to a full one; it is kept until measured."""
    gc.collect()
    before = resident()
    memslots = fill(order)
    grown = resident() - before
    assert len(memslots) == len(order)
    return grown / len(order)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    rounds = 400 if arguments.quick else 3000
    rng = random.Random(1)
    ours(slots_of(10), rng, 50)  # compile
    full = slots_of(SIZES[-1])
    figures: dict[str, Any] = {
        "memory": {"ascending": memory(full), "random order": memory(rng.sample(full, len(full)))},
        "sizes": {},
    }
    print(
        f"{'slots':>6} | {'compiled':>8} {'depend.':>7} | {'find':>6} {'create':>6} {'delete':>6} | "
        "ratios find/create/delete: SortedDict, intervaltree, portion"
    )
    print(f"{'':>6} | {'ns':>8} {'ns':>7} | {'us':>6} {'us':>6} {'us':>6} |")
    for size in SIZES:
        slots = slots_of(size)
        mine = ours(slots, rng, rounds)
        frames = [rng.choice(slots).base_gfn + rng.randrange(PAGES) for _ in range(rounds)]
        changed = rng.choices(slots, k=rounds // 4)
        peers = {
            "SortedDict": sorted_dict(slots, frames, changed),
            "intervaltree": interval_tree(slots, frames, changed[: rounds // 10]),
        }
        if size <= PORTION_UP_TO:
            peers["portion"] = portions(slots, frames[: rounds // 10], changed[:20])
        figures["sizes"][size] = {"guestmem": mine, **peers}
        ratios = ", ".join(
            "/".join(f"{theirs[key] / mine[key]:.2f}" for key in ("python_us", "create_us", "delete_us"))
            for theirs in peers.values()
        )
        print(
            f"{size:>6} | {mine['compiled_ns']:>8.1f} {mine['dependent_ns']:>7.1f} | {mine['python_us']:>6.2f} "
            f"{mine['create_us']:>6.2f} {mine['delete_us']:>6.2f} | {ratios}",
            flush=True,
        )
    smallest, largest = (figures["sizes"][size]["guestmem"] for size in (SIZES[0], SIZES[-1]))
    measured = dict(
        zip(
            LIMITS,
            (
                largest["compiled_ns"],
                largest["python_us"],
                smallest["create_us"],
                smallest["delete_us"],
                largest["create_us"],
                largest["delete_us"],
                *figures["memory"].values(),
            ),
            strict=True,
        )
    )
    figures["aims"] = {name: {"aim": LIMITS[name], "measured": value} for name, value in measured.items()}
    print()
    for name, value in measured.items():
        print(f"{name:<36} {value:>8.2f}   aim {LIMITS[name]:>6.1f}   {'met' if value <= LIMITS[name] else 'MISSED'}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
