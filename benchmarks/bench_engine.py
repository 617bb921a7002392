"""The software engine: kicks, pauses, accesses, and updates by design at ten numbers of slots.

    python benchmarks/bench_engine.py [--json FILE] [--quick]

Beside kicks stands a peer of the same run: one round trip of two threads over a futex, the least that a kick with
acknowledgement can cost when the vCPU sleeps or the updater does. Rows with more vCPUs than cores are marked ``*``:
they also measure the scheduler. Times in microseconds unless said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from guestmem.atomics import load_acquire, poke, store_release, wait, wake
from guestmem.compiled import U64, Words, compiled, u64, words
from guestmem.designs import DESIGNS
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.memslots import Change

VCPUS = (1, 2, 4, 8)
SLOTS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 16_000, 24_000, 32_764)
GOAL_US = 50.0
HVA = 0x7F00_0000_0000
PAGE = 4096
CORES = len(os.sched_getaffinity(0))
clock = time.perf_counter_ns


@compiled(nogil=True)
def serve(ball: Words, rounds: U64) -> None:
    """One side of the round trip: wait for an odd count, make it even."""
    done = u64(0)
    while done < rounds:
        wanted = done + done + u64(1)
        while True:
            seen = load_acquire(ball, u64(0))
            if seen == wanted:
                break
            wait(ball, u64(0), seen)
        store_release(ball, u64(0), wanted + u64(1))
        wake(ball, u64(0), u64(1))
        done += u64(1)


@compiled(nogil=True)
def play(ball: Words, count: U64) -> None:
    """The other side: make it odd, wait until it is even again."""
    store_release(ball, u64(0), count + u64(1))
    wake(ball, u64(0), u64(1))
    while True:
        seen = load_acquire(ball, u64(0))
        if seen == count + u64(2):
            return
        wait(ball, u64(0), seen)


def futex_round_trip(rounds: int) -> list[float]:
    """Times of a round trip over a futex between two threads, in microseconds; both sleep each time."""
    ball = words(8)
    serve(ball, 0)
    poke(ball, 0, 0)
    other = threading.Thread(target=serve, args=(ball, rounds), daemon=True)
    other.start()
    times = []
    for number in range(rounds):
        time.sleep(100e-6)
        begun = clock()
        play(ball, 2 * number)
        times.append((clock() - begun) / 1000)
    other.join()
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, 90 % and 99 %."""
    ordered = sorted(times)
    return {
        "median": statistics.median(ordered),
        "p90": ordered[len(ordered) * 9 // 10],
        "p99": ordered[len(ordered) * 99 // 100],
    }


class Guest:
    """An engine whose vCPUs touch ``pages`` pages of slot 0."""

    def __init__(self, vcpus: int, pages: int, access: Access, slots: int = 1) -> None:
        self.memory = HostMemory([(HVA, HVA + (pages + 2 * slots) * PAGE)])
        self.base = self.memory.translate(HVA)
        self.engine = SoftEngine(vcpus)
        self.engine.set_access(access)
        self.engine.set_memory_region(Change(0, 0, pages, self.base))
        for slot in range(1, slots):
            self.engine.set_memory_region(Change(slot, pages + 2 * slot, 1, self.base + (pages + slot) * PAGE))
        hosts = ((page * PAGE, self.base + page * PAGE) for page in range(pages))
        self.load = Load(Target(gpa, host, host, changed=True) for gpa, host in hosts)

    def __enter__(self) -> Guest:
        self.engine.start()
        self.engine.set_load(self.load)
        time.sleep(0.01)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.engine.stop()
        self.memory.close()

    def time(self, rounds: int, *calls: Callable[[], object]) -> list[list[float]]:
        """Times of each call in microseconds, ``rounds`` times, with vCPUs running freely in between."""
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            time.sleep(200e-6)
            for call, each in zip(calls, times, strict=True):
                begun = clock()
                call()
                each.append((clock() - begun) / 1000)
        return times


def kicks(rounds: int) -> dict[str, Any]:
    """Kick and acknowledge, pause, and resume, by number of vCPUs; the floor is a kick with nobody in the guest."""
    result: dict[str, Any] = {"futex round trip": spread(futex_round_trip(rounds))}
    for vcpus in VCPUS:
        with Guest(vcpus, 64, Access()) as guest:
            engine = guest.engine
            before = engine.counts.copy()
            (kick,) = guest.time(rounds, engine.kick)
            slept = (engine.counts - before).slept / rounds
            pause, resume = guest.time(rounds, engine.pause, engine.resume)
            engine.stop()
            (nobody,) = guest.time(rounds // 4, engine.kick)
        both = [a + b for a, b in zip(pause, resume, strict=True)]
        result[str(vcpus)] = {
            "kick": spread(kick),
            "kick slept": slept,
            "pause+resume": spread(both),
            "pause": spread(pause),
            "floor": spread(nobody),
        }
    return result


def accesses(seconds: float) -> dict[str, float]:
    """Accesses per second and vCPU, with all translations in the TLB and with (nearly) none."""
    result = {}
    for name, pages in (("TLB hit", 64), ("TLB miss", 8_000)):
        for vcpus in (1, 2):
            with Guest(vcpus, pages, Access("sequential")) as guest:
                begun, before = clock(), [each["accesses"] for each in guest.engine.vcpu_counts()]
                time.sleep(seconds)
                made = [each["accesses"] - was for each, was in zip(guest.engine.vcpu_counts(), before, strict=True)]
                took = (clock() - begun) / 1e9
                guest.engine.stop()
                counts = guest.engine.vcpu_counts()
            misses = sum(each["tlb_misses"] for each in counts) / sum(each["accesses"] for each in counts)
            result[f"{name}, {vcpus} vCPUs [million/s]"] = statistics.mean(made) / took / 1e6
            result[f"{name}, {vcpus} vCPUs [misses an access]"] = misses
    return result


def updates(rounds: int, sizes: Sequence[int], vcpus: int) -> dict[str, dict[str, float]]:
    """Median time of a delete and create of one slot, by design and number of slots, while vCPUs touch that slot."""
    result: dict[str, dict[str, float]] = {}
    for slots in sizes:
        with Guest(vcpus, 16, Access(), slots) as guest:
            engine = guest.engine
            changes = [Change(0), Change(0, 0, 16, guest.base)]
            other = [Change(0), Change(0, 0, 16, guest.base + 8 * PAGE)]  # what it was re-hosted to
            for design in DESIGNS:
                if design.broken or design.needs & ~engine.capabilities:
                    continue
                apply = design.prepare(engine)
                times = guest.time(rounds, partial(apply, engine, other), partial(apply, engine, changes))
                result.setdefault(design.name, {})[str(slots)] = statistics.median([*times[0], *times[1]])
                engine.answer_mmio(False)
    return result


def show(figures: dict[str, Any]) -> None:
    """The figures as tables."""
    trip = figures["kicks"].pop("futex round trip")
    print(f"{CORES} cores; futex round trip of two threads: {trip['median']:.1f} us (90 % {trip['p90']:.1f})")
    print(f"\n{'vCPUs':>6} {'kick':>8} {'90 %':>8} {'99 %':>8} {'/trip':>6} {'floor':>6}", end=" ")
    print(f"{'pause+resume':>13} {'90 %':>8} {'99 %':>8}  goal <= {GOAL_US:.0f}")
    for vcpus, row in figures["kicks"].items():
        kick, both = row["kick"], row["pause+resume"]
        mark = "*" if int(vcpus) > CORES else " "
        verdict = "reached" if kick["median"] <= GOAL_US else "MISSED"
        print(
            f"{vcpus:>5}{mark} {kick['median']:8.1f} {kick['p90']:8.1f} {kick['p99']:8.1f}",
            f"{kick['median'] / trip['median']:6.2f} {row['floor']['median']:6.1f}",
            f"{both['median']:13.1f} {both['p90']:8.1f} {both['p99']:8.1f}  {verdict}",
        )
    figures["kicks"]["futex round trip"] = trip
    print()
    for name, value in figures["accesses"].items():
        print(f"{name:38} {value:8.2f}")
    sizes = list(next(iter(figures["updates"].values())))
    print(
        f"\ndelete + create of one slot, {figures['update_vcpus']} vCPUs touching it, by number of slots: median [us]"
    )
    print(f"{'design':22}" + "".join(f"{size:>8}" for size in sizes) + "   growth")
    for design, row in figures["updates"].items():
        growth = row[sizes[-1]] / row[sizes[0]]
        print(f"{design:22}" + "".join(f"{row[size]:8.1f}" for size in sizes) + f"   x{growth:.2f}")


def main() -> None:
    """Measure, print, and write JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, three numbers of slots")
    options = parser.parse_args()
    rounds, few = (200, 20) if options.quick else (2_000, 100)
    sizes = (SLOTS[0], SLOTS[4], SLOTS[-1]) if options.quick else SLOTS
    vcpus = min(2, CORES)
    figures = {
        "cores": CORES,
        "update_vcpus": vcpus,
        "kicks": kicks(rounds),
        "accesses": accesses(0.2 if options.quick else 1.0),
        "updates": updates(few, sizes, vcpus),
    }
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
