"""On the real kernel: delete and re-create of one slot beneath running vCPUs, exit_retry against pausing.

    python benchmarks/bench_kvm.py [SECONDS]

Two loads: *beside*, in which no vCPU touches the slot that changes, and *inside*, in which half of all accesses go to
it. For each design: what an update takes, how long vCPUs were kept from running, and how much of their work they did.
Also: a kick, a pause, and one MMIO exit answered without Python. Skipped where /dev/kvm cannot be used.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.kvm import KvmLoadEngine, host, unusable
from guestmem.engines.stalls import percentile
from guestmem.memslots import Change

SECONDS = 2.0
DESIGNS = ("none", "pause", "exit_retry")
PAGES = 16
HVA = 0x7F0000000000
GAP_S = 1e-3
_clock = time.perf_counter_ns


def no_update(_engine: KvmLoadEngine, _changes: Sequence[Change]) -> None:
    """What the vCPUs do undisturbed."""


def play(vcpus: int, design: str, share: float, seconds: float) -> tuple[float, float, float, float, float, int]:
    """Update median, stall median and 99 % (µs), stalls an update, million accesses a second, failures."""
    memory = HostMemory([(HVA, HVA + 3 * PAGES * 0x1000)])
    words = [memory.address + 0x1000 * page for page in range(2 * PAGES)]
    for word in words:
        memory.write(word + 7, b"\xc3")
    slots = [Change(slot, slot * PAGES, PAGES, memory.address + slot * PAGES * 0x1000) for slot in range(2)]
    with KvmLoadEngine(vcpus) as engine:
        apply: Callable[[KvmLoadEngine, Sequence[Change]], None] = no_update
        if design != "none":
            apply = find(design).prepare(engine)
        engine.set_access(Access(changed=share))
        for slot in slots:
            engine.set_memory_region(slot)
        engine.start()
        targets = [Target(word - memory.address, word, word, changed=page >= PAGES) for page, word in enumerate(words)]
        engine.set_load(Load(targets if share else targets[:PAGES]))
        took = []
        begun = time.monotonic()
        while (ran := time.monotonic() - begun) < seconds:
            at = _clock()
            apply(engine, [Change(1), slots[1]])
            took.append(_clock() - at)
            time.sleep(GAP_S)
        engine.set_load(Load())  # a stop may fall between an increment and its count
        engine.stop()
        every = engine.vcpu_counts()
    total = {name: sum(counts[name] for counts in every) for name in every[0]}
    histogram = [sum(column) for column in zip(*(counts.histogram for counts in every), strict=True)]
    stalls = sum(histogram)
    written = sum(memory.word(word) & (1 << 56) - 1 for word in words)
    failures = total["holes_read"] + total["holes_write"] + total["killed_fetches"] + abs(total["writes"] - written)
    memory.close()
    return (
        statistics.median(took) / 1e3,
        percentile(histogram, 0.5) / 1e3,
        percentile(histogram, 0.99) / 1e3,
        stalls / len(took),
        total["accesses"] / ran / 1e6,
        failures,
    )


def floors(seconds: float) -> None:
    """A kick, a pause, an MMIO exit."""
    with KvmLoadEngine(1) as engine:
        engine.start()
        engine.set_load(Load([Target(0x100000, 0, 0)]))
        begun = time.monotonic()
        time.sleep(seconds / 2)
        engine.set_load(Load())
        ran = time.monotonic() - begun
        kicks, pauses = [], []
        for _ in range(500):
            at = _clock()
            engine.kick()
            kicks.append(_clock() - at)
            time.sleep(1e-4)
            at = _clock()
            engine.pause()
            engine.resume()
            pauses.append(_clock() - at)
            time.sleep(1e-4)
        engine.stop()
        exits = engine.vcpu_counts()[0]["mmio_exits"]
    print(f"one MMIO exit, answered: {ran / exits * 1e6:.1f} µs ({exits} of them; the guest's own work included)")
    for name, values in (("kick", kicks), ("pause and resume", pauses)):
        print(f"{name}, 1 vCPU, median: {statistics.median(values) / 1e3:.1f} µs")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    if why := unusable():
        print(f"skipped: {why}")
        return
    cores = len(os.sched_getaffinity(0))
    print(f"host: {host()}; {cores} cores, load average {os.getloadavg()[0]:.1f}")
    print(f"{seconds:g} s a line, an update a millisecond\n")
    floors(seconds)
    head = ("load", "vCPUs", "design", "update", "stalls/update", "stall, median", "99 %", "M accesses/s", "failures")
    print("\n" + "".join(f"{name:>15}" for name in head))
    for load, share in (("beside", 0.0), ("inside", 0.5)):
        for vcpus in (1, 2, 4):
            for design in DESIGNS:
                update, median, tail, stalls, rate, failures = play(vcpus, design, share, seconds)
                times = ["-" if not value else f"{value:.0f} µs" for value in (median, tail)]
                cells = (
                    *(load, f"{vcpus}{'*' if vcpus > cores else ''}", design),
                    *("-" if design == "none" else f"{update:.0f} µs", f"{stalls:.2f}", *times),
                    *(f"{rate:.1f}", str(failures)),
                )
                print("".join(f"{cell:>15}" for cell in cells))
    print("\n*: more vCPUs than cores, so waits include the scheduler's")


if __name__ == "__main__":
    main()
