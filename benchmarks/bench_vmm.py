"""Cost of a memory map by its size: a full render, enabling one region, moving one; against a render of all each time.

Limits: 10 000 regions render in 0.5 s, and enabling one of them takes 1 ms.
"""

from __future__ import annotations

import random
import statistics
import time

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


def main() -> None:
    print("regions  ranges  full render   enable one  + slots (QEMU)    move one   full / enable")
    for count in SIZES:
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
    main()
