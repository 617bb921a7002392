"""A whole vCPU fault of the software engine: exit, slot, leaf, entry, and the access again. Bound: 400 ns (4K pages).

Beside it, in the same run: the table alone (``map_shared``), a translation that hits the TLB, and one that walks.
"""

from __future__ import annotations

import statistics
import time

from guestmem.compiled import U64, Own, Words, compiled, u64
from guestmem.engines.soft import HostMemory, SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.stage2_vcpu import stage2_exit
from guestmem.engines.soft.vcpu import enter_guest, leave_core
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, Change
from guestmem.stage2.locked import map_shared
from guestmem.stage2.tlb_layout import OK, PERMISSION
from guestmem.stage2.tlb_walk import tlb_enter, tlb_leave, tlb_translate

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
    first: U64,
    count: U64,
    step: U64,
    kind: U64,
) -> U64:
    """Access ``count`` frames, ``step`` apart, in the guest; returns the exits."""
    one = u64(1)
    vcpu = u64(0)
    exits = u64(0)
    if not enter_guest(vm, load, own, vcpu):
        return exits
    tlb_enter(shape, pool, mmu, tlb)
    gfn = first
    while gfn < first + count * step:
        while True:
            status = tlb_translate(shape, pool, mmu, tlb, gfn << 12, gfn << 12, one << kind)
            if status == OK:
                break
            stage2_exit(
                vm, memslots, srcu, load, own, shape, pool, pages, mmu, desk, tlb, vcpu, gfn, kind,
                status == PERMISSION, False, False, u64(0),
            )  # fmt: skip
            exits += one
        gfn += step
    tlb_leave(mmu, tlb)
    leave_core(vm, own, vcpu, False)
    return exits


@compiled(nogil=True)
def build(shape: Own, pool: Words, pages: Words, mmu: Words, desk: Own, count: U64, host: U64, attributes: U64) -> U64:
    """Map ``count`` pages one by one, as the faults do, and nothing else."""
    page = u64(0)
    while page < count:
        map_shared(
            shape, pool, pages, mmu, desk, page << 12, u64(4096), host + (page << 12), attributes, u64(3), u64(0)
        )
        page += u64(1)
    return page


class Bench:
    """One engine, and a vCPU that this thread plays."""

    def __init__(self, arch: str) -> None:
        self.engine = SoftEngine(1, arch=arch, stage2=True)
        assert self.engine.stage2 is not None
        self.arch, self.stage2 = arch, self.engine.stage2
        self.table = self.stage2.tables[0]
        engine = self.engine
        own = engine._own[0]  # noqa: SLF001 - this thread is its vCPU
        own[int(at.LOADED)] = 0
        shared = engine._vm, engine.memslots.words, engine.srcu.words, engine._load, own  # noqa: SLF001 - what a vCPU gets
        self.words = (*shared, *self.table.words, self.table.desks[1], self.stage2.tlbs[0][0].words)

    def show(self, name: str, figures: list[float]) -> None:
        """Print a line."""
        print(f"{self.arch:6} {name:44} median {statistics.median(figures):7.1f} ns, best {min(figures):7.1f}")

    def run(self, name: str, count: int, step: int, kind: int, *, zap: bool = True, protect: bool = False) -> None:
        """Access ``count`` frames; everything was zapped or protected before, or nothing, and then nothing faults."""
        figures = []
        for _ in range(ROUNDS):
            if zap:
                self.engine.flush(wait=True)
            if protect:
                self.stage2.protect(0, [(0, PAGES)])
            begun = time.perf_counter_ns()
            exits = touch(*self.words, 0, count, step, kind)
            figures.append((time.perf_counter_ns() - begun) / count)
            assert exits >= count * (zap or protect), (name, exits)
        self.show(name, figures)


def main() -> None:
    memory = HostMemory([(HVA, HVA + PAGES * PAGE)], low=True)
    base = memory.translate(HVA)
    for arch in ("x86", "arm64"):
        bench = Bench(arch)
        bench.engine.set_memory_region(Change(0, 0, PAGES, base, KVM_MEM_LOG_DIRTY_PAGES))
        bench.run("fault that maps a 4K page, write", PAGES, 1, 1)
        bench.run("translation that walks or hits a leaf", 4096, 1, 1, zap=False)
        bench.run("translation that hits", 128, 1, 1, zap=False)
        bench.run("fault that maps a 4K page, read", PAGES, 1, 0)
        bench.run("fault that lifts write protection", PAGES, 1, 1, zap=False, protect=True)
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
