"""The speed of ``atomic``, each figure beside its floor in the same run.

    python benchmarks/bench_atomic.py [--quick] [--json FILE] [--part NAME …]

boot: a transaction of the boot trace, vCPUs touching what changes, against one acknowledged kick of all; and how long
vCPUs wait, against ``pause``. outside: accesses of a vCPU that touches nothing that changes, against those beside an
updater that spins as long. slots: one changed range, by number of slots. vsm: 100 000 splits and merges while two vCPUs
run. calls: what a primitive and a transaction of ``Vm`` cost without a vCPU running, with two that do not touch them.
entries: a batch by the number of its entries, no vCPU running, by ``Vm`` and by the engine alone.
Runs of different parts alternate with their floors, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guestmem.compare.plan import plan
from guestmem.compare.replay import replay
from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.memslots import Change
from guestmem.traces import read
from guestmem.vm import Vm

TRACE = Path(__file__).parents[1] / "examples" / "traces" / "pc-seabios-smp2.log"
SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000, 16_000, 24_000, 32_764)
HVA, PAGE, ALIVE = 0x7F00_0000_0000, 4096, 32_700
clock = time.perf_counter_ns


def boot(quick: bool) -> dict[str, Any]:
    """Median update less median kick, at one and two vCPUs; parts; stalls against ``pause``."""
    result: dict[str, Any] = {}
    steps = plan(read(str(TRACE)), page_size=0, files=True)
    for name in ("atomic", "pause"):  # what is compiled, or loaded, on first need is that before a vCPU waits for it
        with SoftEngine(1, address_spaces=steps.address_spaces) as engine:
            replay(steps, find(name), engine, access=Access(), repeat=1, interval_s=0.001)
    for vcpus in (1, 2):
        rows = {}
        for name in ("atomic", "pause"):
            with SoftEngine(vcpus, address_spaces=steps.address_spaces) as engine:
                rows[name] = replay(
                    steps, find(name), engine, access=Access(), repeat=10 if quick else 100, interval_s=0.001
                )
        row, counts = rows["atomic"], rows["atomic"].counts
        work = {part: getattr(counts, f"{part}_ns") / row.transactions / 1e3 for part in _PARTS}
        waited = {
            name: sum(each["stall_total"] for each in each_row.vcpu_counts) / each_row.transactions / 1e3
            for name, each_row in rows.items()
        }
        result[str(vcpus)] = {
            "update [us]": row.update_ns.median / 1e3,
            "floor: one kick [us]": row.one_kick_ns.median / 1e3,
            "more than the floor [us], goal 12": (row.update_ns.median - row.one_kick_ns.median) / 1e3,
            "parts, mean [us]": work,
            "vCPU time stalled, of pause's, goal 0.5": waited["atomic"] / waited["pause"],
        }
    steps.close()
    return result


_PARTS = ("lock", "edit", "request", "acks", "grace")


class Guest:
    """Slot 0, which vCPUs touch, and ``slots`` further ones of a page each, which they do not."""

    def __init__(self, vcpus: int, slots: int) -> None:
        self.memory = HostMemory([(HVA, HVA + (64 + 2 * slots + 64) * PAGE)])
        self.base = self.memory.translate(HVA)
        self.engine = SoftEngine(vcpus)
        self.engine.set_access(Access(writes=0.3, fetches=0))
        self.engine.set_memory_region(Change(0, 0, 16, self.base))
        for slot in range(1, slots):
            self.engine.set_memory_region(self.slot(slot))
        self.apply = find("atomic").prepare(self.engine)

    def slot(self, slot: int, page: int = 0) -> Change:
        return Change(slot, 64 + 2 * slot, 1, self.base + (64 + slot + page) * PAGE)

    def __enter__(self) -> Guest:
        self.engine.start()
        hosts = [(gfn * PAGE, self.base + gfn * PAGE) for gfn in range(16)]
        self.engine.set_load(Load(Target(gpa, host, host) for gpa, host in hosts))
        time.sleep(0.02)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.engine.stop()
        self.memory.close()

    def accesses(self) -> int:
        return sum(each["accesses"] for each in self.engine.vcpu_counts())


def outside(quick: bool) -> dict[str, Any]:
    """Accesses beside updates that re-host and split elsewhere, of those beside an updater that only spins."""
    with Guest(1, 64) as guest:

        def updates() -> None:
            for page in (1, 0):
                guest.apply(guest.engine, [Change(5), guest.slot(5, page)])

        updates()
        ratios: list[float] = []
        took: list[int] = []
        for _ in range(5 if quick else 25):
            rates = []
            for spins in (True, False):
                begun, before, done = clock(), guest.accesses(), 0
                while clock() - begun < 40_000_000:
                    if spins:
                        end = clock() + (statistics.median(took) if took else 100_000)
                        while clock() < end:
                            pass
                    else:
                        start = clock()
                        updates()
                        took.append(clock() - start)
                    done += 1
                rates.append((guest.accesses() - before) / (clock() - begun))
            ratios.append(rates[1] / rates[0])
    return {"of the throughput beside a spinning updater, goal 0.98": statistics.median(ratios), "runs": sorted(ratios)}


def slots(quick: bool) -> dict[str, Any]:
    """Median of a batch that re-hosts one slot, by number of slots: the best of some rounds over ten sizes.

    A processor that changes its speed between rounds does so for all sizes.
    """
    sizes = SIZES[::3] if quick else SIZES
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(2 if quick else 20):
        for size in sizes:
            with Guest(2, size) as guest:
                each = []
                for number in range(200):
                    begun = clock()
                    guest.apply(guest.engine, [Change(0), Change(0, 0, 16, guest.base + 16 * (number & 1) * PAGE)])
                    each.append((clock() - begun) / 1e3)
                    time.sleep(100e-6)
                times[size].append(statistics.median(each))
    best = {size: min(rounds) for size, rounds in times.items()}
    return {
        "median [us] by slots, of the best round": best,
        "largest of the smallest, goal 1.2": max(best.values()) / best[sizes[0]],
        "worst round [us] by slots": {size: max(rounds) for size, rounds in times.items()},
    }


def vsm(quick: bool) -> dict[str, Any]:
    """Splits and merges page by page: one slot becomes ALIVE, and is one again, and so on; two vCPUs run elsewhere."""
    count = 10_000 if quick else 100_000
    alive = min(ALIVE, count // 3)
    with Guest(2, 1) as guest:
        first, end = 1 << 16, (1 << 16) + 2 * ALIVE
        host = 0x5000_0000_0000  # nobody touches it

        def piece(slot: int, start: int, stop: int) -> Change:
            return Change(slot, start, stop - start, host + (start - first) * PAGE)

        guest.engine.set_memory_region(piece(1, first, end))
        done, level, splits = 0, 1, True
        before, begun = guest.engine.counts.copy(), clock()
        while done < count:
            cut = first + 2 * level
            if splits:  # the last piece loses its first two frames' worth: slot ``level`` keeps them
                last = piece(level, cut - 2, end)
                low, high = piece(level, cut - 2, cut), piece(level + 1, cut, end)
                guest.apply(guest.engine, [Change(last.slot), low, high])
                level += 1
                splits = level < alive
            else:
                cut -= 2
                guest.apply(guest.engine, [Change(level), Change(level - 1), piece(level - 1, cut - 2, end)])
                level -= 1
                splits = level == 1
            done += 1
        took = (clock() - begun) / 1e9
        counts = guest.engine.counts - before
        zaps, stalls = counts.zaps, sum(each["flux_stalls"] for each in guest.engine.vcpu_counts())
    return {
        "changes": count,
        "at most alive": alive,
        "s": took,
        "us each": took / count * 1e6,
        "s for 100 000, goal 6": took / count * 1e5,
        "zaps, goal 0": zaps,
        "accesses that waited, goal 0": stalls,
    }


def _pairs(vm: Vm) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Calls that undo each other, by name."""
    memory, engine, raw, gpa = vm.memory, vm.engine, find("atomic").prepare(vm.engine), 1 << 24
    whole = Change.of(memory[1])
    low = whole._replace(npages=32)
    high = Change(2, whole.base_gfn + 32, 32, whole.userspace_addr + 32 * PAGE)
    return {
        "split, merge": (lambda: memory.split(1, gpa + 32 * PAGE, 2), lambda: memory.merge(1, 2)),
        "truncate, grow": (lambda: memory.resize(1, 32 * PAGE), lambda: memory.resize(1, 64 * PAGE)),
        "atomic of 3 entries, the engine's": (
            lambda: raw(engine, [Change(1), low, high]),
            lambda: raw(engine, [Change(1), Change(2), whole]),
        ),
    }


def calls(quick: bool) -> dict[str, Any]:
    """Public calls, median: with no vCPU running, and with two that touch other memory."""
    result: dict[str, Any] = {}
    rounds = 300 if quick else 3000
    for vcpus in (0, 2):
        with Vm(max(vcpus, 1)) as vm:
            vm.memory.create(0, gpa=0, size=16 * PAGE)
            vm.memory.create(1, gpa=1 << 24, size=64 * PAGE)
            if vcpus:
                host = vm.memory[0].userspace_addr
                vm.engine.set_load(Load(Target(gfn * PAGE, host + gfn * PAGE, host + gfn * PAGE) for gfn in range(16)))
                vm.engine.start()
            engine, pairs = vm.engine, _pairs(vm)
            for name, both in pairs.items():
                times = []
                for _ in range(rounds):
                    for call in both:
                        begun = clock()
                        call()
                        times.append((clock() - begun) / 1e3)
                result.setdefault(name, {})[f"{vcpus} vCPUs [us]"] = statistics.median(times)
            engine.stop()
    for row in result.values():
        row["with two vCPUs, of without, goal 1.5"] = row["2 vCPUs [us]"] / row["0 vCPUs [us]"]
    return result


def entries(quick: bool) -> dict[str, Any]:
    """A batch that moves k slots to and fro, 2 k entries, no vCPU running: by ``Vm``, and by the engine alone."""
    result: dict[str, Any] = {}
    rounds = 40 if quick else 200
    with Vm() as vm:
        host = vm.memory.create(0, gpa=0, size=64 * PAGE).userspace_addr
        apply = find("atomic").prepare(vm.engine)
        sizes = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)

        def by_vm(count: int, place: int) -> None:
            with vm.memory.transaction() as change:
                for slot in range(count):
                    change.delete(1 + slot)
                    gpa = (1 << 30) + (2 * slot + place) * PAGE
                    change.create(1 + slot, gpa=gpa, size=PAGE, host=host + slot * PAGE)

        def by_engine(count: int, place: int) -> None:
            changes = []
            for slot in range(100, 100 + count):
                changes += [Change(slot), Change(slot, (1 << 18) + 2 * slot + place, 1, host + (slot - 100) * PAGE)]
            apply(vm.engine, changes)

        for name, call, first in (("Vm", by_vm, 1), ("engine", by_engine, 100)):
            times: dict[int, float] = {}
            for count in sizes:
                for slot in range(count):
                    if call is by_vm:
                        vm.memory.create(first + slot, gpa=(1 << 30) + 2 * slot * PAGE, size=PAGE, host=host)
                    else:
                        gfn = (1 << 18) + 2 * (first + slot)
                        vm.engine.set_memory_region(Change(first + slot, gfn, 1, host))
                each = []
                for number in range(rounds):
                    begun = clock()
                    call(count, 1 - (number & 1))
                    each.append((clock() - begun) / 1e3)
                times[2 * count] = statistics.median(each)
                for slot in range(count):
                    if call is by_vm:
                        vm.memory.delete(first + slot)
                    else:
                        vm.engine.set_memory_region(Change(first + slot))
            slope, fixed = statistics.linear_regression(list(times), list(times.values()))
            result[name] = {
                "by entries [us]": times,
                "fixed [us], goal 15": fixed,
                "an entry [us], goal 4": slope,
            }
    return result


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "boot": boot,
    "outside": outside,
    "slots": slots,
    "vsm": vsm,
    "calls": calls,
    "entries": entries,
}


def show(name: str, figures: Any, depth: int = 0) -> None:
    """Figures as indented lines."""
    if isinstance(figures, dict):
        print(f"{'  ' * depth}{name}")
        for key, value in figures.items():
            show(str(key), value, depth + 1)
    elif isinstance(figures, list):
        print(f"{'  ' * depth}{name:<58}{' '.join(f'{each:.3f}' for each in figures)}"[:120])
    else:
        print(
            f"{'  ' * depth}{name:<58}{figures:>12,.2f}"
            if isinstance(figures, float)
            else f"{'  ' * depth}{name:<58}{figures:>12,}"
        )


def main() -> None:
    """Measure, print, and write JSON if asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one (repeat for more)")
    options = parser.parse_args()
    figures = {}
    for name in options.part or PARTS:
        figures[name] = PARTS[name](options.quick)
        show(name, figures[name])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
