"""Cost of a memory map by its size: a full render, enabling one region, moving one; against a render of all each time.

Limits: 10 000 regions render in 0.5 s, and enabling one of them takes 1 ms. Then ``vm.map`` on the software engine: the
same with the slots of a VM carried out, against a plan of all slots at each update. ``bench_vmm.py SIZE…`` takes sizes.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

from guestmem.vm import Vm
from guestmem.vmm import KvmListener, MemoryMap, MemoryRegion, render

SIZES = (10, 30, 100, 300, 1000, 3000, 10_000, 20_000, 30_000, 100_000)


def tree(count: int, rng: random.Random) -> tuple[MemoryMap, MemoryRegion, list[MemoryRegion]]:
    """Containers of a hundred regions each, which overlap neighbours with mixed priorities; aliases among them."""
    memory = MemoryMap()
    root = memory.container("root")
    leaves: list[MemoryRegion] = []
    box = root
    for number in range(count):
        if number % 100 == 0:
            box = root.add_subregion(number * 0x2000, memory.container(f"box {number}", 100 * 0x2000 + 0x1000))
        name, where = f"region {number}", number % 100 * 0x2000
        if number % 7 == 6:
            region = memory.alias(name, leaves[rng.randrange(len(leaves))].alias or leaves[-1], 0, 0x1000)
        elif number % 3:
            region = memory.ram(name, 0x3000, userspace_addr=(number + 1) << 32)
        else:
            region = memory.mmio(name, 0x3000)
        leaves.append(box.add_subregion(where, region, rng.randrange(3)))
    return memory, root, leaves


def median(samples: list[float]) -> float:
    return statistics.median(samples)


def followed(count: int, way: str) -> tuple[int, float, float]:
    """Slots of a VM whose map has ``count`` regions; medians of enabling one, with a local plan and a plan of all."""
    rng = random.Random(count)
    with Vm() as vm:
        memory, rams = vm.map, []
        memory.way = way
        with memory.transaction():
            for place in range(count):
                region = memory.ram(f"{place}", 0x1000) if place % 3 else memory.mmio(f"{place}", 0x1000)
                memory.system.add_subregion(place * 0x2000, region)
                rams += [region] if place % 3 else []
        local: list[float] = []
        whole: list[float] = []
        for _ in range(40):
            for samples, name in ((local, way), (whole, "")):
                region = rng.choice(rams)
                region.set_enabled(False)
                (follower,) = memory.space("memory").listeners
                follower.planned = name  # type: ignore[attr-defined]
                begun = time.perf_counter()
                region.set_enabled(True)
                samples.append(time.perf_counter() - begun)
        return len(vm.memory), median(local), median(whole)


def main(sizes: tuple[int, ...] = SIZES) -> None:
    print("regions  ranges  full render   enable one  + slots (QEMU)    move one   full / enable")
    for count in sizes:
        rng = random.Random(count)
        memory, root, leaves = tree(count, rng)
        space = memory.address_space("memory", root)
        full = []
        for _ in range(3):
            begun = time.perf_counter()
            render(root)
            full.append(time.perf_counter() - begun)
        enable = toggled(leaves, rng)
        move = []
        for _ in range(200):
            region = rng.choice(leaves)
            where = region.addr
            begun = time.perf_counter()
            region.set_address(where ^ 0x1000)
            move.append(time.perf_counter() - begun)
        space.register(KvmListener(max_slots=1 << 20))
        slots = toggled(leaves, rng)
        print(
            f"{count:7} {len(space.view):7} {median(full) * 1e3:9.2f} ms {median(enable) * 1e6:9.0f} µs"
            f" {median(slots) * 1e6:12.0f} µs {median(move) * 1e6:8.0f} µs {median(full) / median(enable):12.1f}"
        )

    print("\nvm.map   slots   way      enable one   by a plan of all   all / local")
    for count in sizes:
        for way in ("fewest", "least") if count <= 30_000 else ():
            held, local, every = followed(count, way)
            print(f"{count:7} {held:6}   {way:6} {local * 1e6:9.0f} µs {every * 1e6:15.0f} µs {every / local:12.1f}")


def toggled(leaves: list[MemoryRegion], rng: random.Random) -> list[float]:
    samples = []
    for _ in range(200):
        region = rng.choice(leaves)
        region.set_enabled(False)
        begun = time.perf_counter()
        region.set_enabled(True)
        samples.append(time.perf_counter() - begun)
    return samples


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SIZES)
