"""A whole vCPU fault of the software engine: exit, slot, leaf, entry, and the access again. Bound: 400 ns (4K pages).

Beside it, in the same run: the table alone (``map_shared``), a translation that hits the TLB, and one that walks; the
same fault in plain Python; two vCPUs that fault in one table, against one; and what a fault costs at ten sizes.
"""

from __future__ import annotations

import os
import statistics
import threading
import time

from guestmem.compiled import U64, Own, Words, compiled, u64
from guestmem.engines import HostMemory
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.gmem_slot import Gmem
from guestmem.engines.soft.stage2_vcpu import REACHED, reach
from guestmem.engines.soft.vcpu import enter_guest, leave_core
from guestmem.engines.soft.words import Access, Slots
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, Change
from guestmem.stage2.locked import map_shared
from guestmem.stage2.tlb_walk import tlb_enter, tlb_leave
from guestmem.stage2.words import Table
from plain_stage2 import PlainTable, plain_fault

HVA, PAGE = 0x7F0000000000, 4096
PAGES = 1 << 14
ROUNDS = 9


@compiled(nogil=True)
def touch(
    vm: Words,
    memslots: Words,
    srcu: Words,
    load: Words,
    own: Own,
    shape: Own,
    pool: Words,
    pages: Words,
    mmu: Words,
    desk: Own,
    tlb: Own,
    file: Words,
    inode: Words,
    states: Words,
    attributes: Words,
    page: Own,
    first: U64,
    count: U64,
    step: U64,
    kind: U64,
    vcpu: U64,
) -> U64:
    """Access ``count`` frames, ``step`` apart, in the guest; returns the exits."""
    slots, table = Slots(vm, memslots, srcu, own), Table(shape, pool, pages, mmu, desk)
    gmem = Gmem(file, inode, states, attributes, page)
    before = own[at.STAGE2_FAULTS]
    if not enter_guest(vm, load, own, vcpu):
        return u64(0)
    tlb_enter(shape, pool, mmu, tlb)
    gfn = first
    while gfn < first + count * step:
        if (
            reach(slots, load, table, tlb, gmem, vcpu, gfn << 12, Access(gfn, kind, False, False, False, u64(0)))
            == REACHED
        ):
            gfn += step
    tlb_leave(mmu, tlb)
    leave_core(vm, own, vcpu, False)
    return own[at.STAGE2_FAULTS] - before


@compiled(nogil=True)
def build(shape: Own, pool: Words, pages: Words, mmu: Words, desk: Own, count: U64, host: U64, attributes: U64) -> U64:
    """Map ``count`` pages one by one, as the faults do, and nothing else."""
    table = Table(shape, pool, pages, mmu, desk)
    page = u64(0)
    while page < count:
        map_shared(table, page << 12, u64(4096), host + (page << 12), attributes, u64(3), u64(0))
        page += u64(1)
    return page


class Bench:
    """One engine, and two vCPUs that threads of this program play."""

    def __init__(self, arch: str) -> None:
        self.engine = SoftEngine(2, arch=arch)
        self.arch, self.stage2 = arch, self.engine.stage2
        self.table = self.stage2.tables[0]
        engine = self.engine
        shared = engine._vm, engine.memslots.words, engine.srcu.words, engine._load  # noqa: SLF001 - what a vCPU gets
        no_file = engine.file_words(0)
        self.words = []
        for vcpu in range(2):
            own = engine._own[vcpu]  # noqa: SLF001 - a thread of this program is its vCPU
            own[int(at.LOADED)] = 0
            tlb = self.stage2.tlbs[0][vcpu].words
            self.words.append((*shared, own, *self.table.words, self.table.desks[vcpu + 1], tlb, *no_file))

    def show(self, name: str, figures: list[float], plain: float = 0) -> None:
        """Print a line."""
        beside = f", plain Python {plain / min(figures):5.0f} times" if plain else ""
        print(f"{self.arch:6} {name:40} median {statistics.median(figures):7.1f} ns, best {min(figures):7.1f}{beside}")

    def run(
        self, name: str, count: int, step: int, kind: int, *, zap: bool = True, protect: bool = False, plain: float = 0
    ) -> None:
        """Access ``count`` frames; everything was zapped or protected before, or nothing, and then nothing faults."""
        figures = []
        for _ in range(ROUNDS):
            if zap:
                self.engine.flush(wait=True)
            if protect:
                self.stage2.protect(0, [(0, PAGES)])
            begun = time.perf_counter_ns()
            exits = touch(*self.words[0], 0, count, step, kind, 0)
            figures.append((time.perf_counter_ns() - begun) / count)
            assert exits >= count * (zap or protect), (name, exits)
        self.show(name, figures, plain)

    def faults(self, vcpus: int) -> float:
        """Seconds in which ``vcpus`` fault on all pages, in turns."""
        self.engine.flush(wait=True)
        meet = threading.Barrier(vcpus + 1)
        ends: list[float] = []
        cores = sorted(os.sched_getaffinity(0))

        def play(vcpu: int) -> None:
            os.sched_setaffinity(0, {cores[vcpu % len(cores)]})
            meet.wait()
            touch(*self.words[vcpu], vcpu, PAGES // vcpus, vcpus, 1, vcpu)
            ends.append(time.perf_counter())

        threads = [threading.Thread(target=play, args=(vcpu,)) for vcpu in range(vcpus)]
        for thread in threads:
            thread.start()
        meet.wait()
        begun = time.perf_counter()
        for thread in threads:
            thread.join()
        return max(ends) - begun

    def two(self) -> None:
        """Two vCPUs against one, in pairs."""
        ratios = [self.faults(1) / self.faults(2) for _ in range(2 * ROUNDS)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        name = "two vCPUs' faults in turns, against one's"
        print(f"{self.arch:6} {name:40} median {statistics.median(ratios):7.2f} times, {spread}")

    def growth(self) -> None:
        """What a fault costs when so many pages fault in a row."""
        for shift in range(5, 15):
            best = []
            for _ in range(ROUNDS):
                self.engine.flush(wait=True)
                begun = time.perf_counter_ns()
                touch(*self.words[0], 0, 1 << shift, 1, 1, 0)
                best.append((time.perf_counter_ns() - begun) / (1 << shift))
            print(f"{self.arch:6}   {1 << shift:6} faults: median {statistics.median(best):7.1f} ns each")


def in_plain_python() -> float:
    """Nanoseconds of the same fault as lists and dicts."""
    figures = []
    for _ in range(3):
        table, tlb = PlainTable(), dict[int, int]()
        slots = [(0, PAGES, HVA)]
        begun = time.perf_counter_ns()
        for gfn in range(PAGES):
            plain_fault(table, slots, tlb, gfn)
        figures.append((time.perf_counter_ns() - begun) / PAGES)
    return min(figures)


def main() -> None:
    memory = HostMemory([(HVA, HVA + PAGES * PAGE)], low=True)
    base = memory.translate(HVA)
    plain = in_plain_python()
    for arch in ("x86", "arm64"):
        bench = Bench(arch)
        bench.engine.set_memory_region(Change(0, 0, PAGES, base, KVM_MEM_LOG_DIRTY_PAGES))
        bench.run("fault that maps a 4K page, write", PAGES, 1, 1, plain=plain)
        bench.run("translation that walks or hits a leaf", 4096, 1, 1, zap=False)
        bench.run("translation that hits", 128, 1, 1, zap=False)
        bench.run("fault that maps a 4K page, read", PAGES, 1, 0, plain=plain)
        bench.run("fault that lifts write protection", PAGES, 1, 1, zap=False, protect=True)
        bench.two()
        bench.growth()
        bench.engine.set_memory_region(Change(0, 0, PAGES, base))
        bench.run("fault that maps a 2M block", PAGES // 512, 512, 1)
        figures = []
        for _ in range(ROUNDS):
            bench.engine.flush(wait=True)
            begun = time.perf_counter_ns()
            build(*bench.table.words, bench.table.desks[1], PAGES, base, bench.stage2.write_attributes)
            figures.append((time.perf_counter_ns() - begun) / PAGES)
        bench.show("the table alone: map_shared of a page", figures)
    memory.close()


if __name__ == "__main__":
    main()
