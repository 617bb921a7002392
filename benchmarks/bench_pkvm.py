"""pKVM: host faults, donations and their return, teardown and joins; by discipline, beside plain Python.

Each figure is the best of repeated runs in this process. The plain Python is a dict of states with the same checks and
no tables at all. Run it alone, or with a better priority than the rest: ``nice -n -15``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from guestmem.compiled import U64, Own, Words, compiled, u64
from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.pkvm import Pkvm
from guestmem.stage2.pkvm.host import host_fault
from guestmem.stage2.pkvm.hyp import host_donate_hyp, hyp_donate_host
from guestmem.stage2.pkvm.join import join_range
from guestmem.stage2.pkvm.reclaim import teardown_guest
from guestmem.stage2.pkvm.transitions import guest_share_host, guest_unshare_host, host_donate_guest
from guestmem.stage2.pkvm.words import Hyp
from guestmem.stage2.pool import Pool

GIB, BLOCK, PAGE = 1 << 30, 2 << 20, 4096
BASE = 0x4000_0000
REPEAT = 5
MANY = 32768
DONATE, RECLAIM = "donate, 32768 pages in a row", "reclaim them, joining 64 blocks"


@compiled(nogil=True)
def fault_stripes(
    shape: Own, pool: Words, pages: Words, host: Words, desk: Own, el2: Words, at: U64, end: U64, step: U64
) -> U64:
    """A host fault at every ``step`` bytes; returns how many failed."""
    hyp = Hyp(shape, pool, pages, host, desk, el2)
    failed = u64(0)
    while at < end:
        if host_fault(hyp, at) != u64(0):
            failed += u64(1)
        at += step
    return failed


@compiled(nogil=True)
def donate_stripes(
    shape: Own,
    pool: Words,
    pages: Words,
    host: Words,
    guest: Words,
    desk: Own,
    el2: Words,
    page: U64,
    end: U64,
    step: U64,
) -> U64:
    """Donate every ``step``-th page to guest 1, frame after frame; returns how many failed."""
    hyp = Hyp(shape, pool, pages, host, desk, el2)
    failed = u64(0)
    gfn = u64(0)
    while page < end:
        if host_donate_guest(hyp, guest, u64(1), page, gfn) != u64(0):
            failed += u64(1)
        gfn += u64(1)
        page += step
    return failed


@compiled(nogil=True)
def lend_and_end(
    shape: Own, pool: Words, pages: Words, host: Words, guest: Words, desk: Own, el2: Words, frames: U64
) -> U64:
    """Guest 1 shares each of its frames with the host, and ends it; returns how many calls failed."""
    hyp = Hyp(shape, pool, pages, host, desk, el2)
    failed = u64(0)
    gfn = u64(0)
    while gfn < frames:
        if guest_share_host(hyp, guest, u64(1), gfn) != u64(0):
            failed += u64(1)
        if guest_unshare_host(hyp, guest, u64(1), gfn) != u64(0):
            failed += u64(1)
        gfn += u64(1)
    return failed


@compiled(nogil=True)
def donate_and_back(
    shape: Own, pool: Words, pages: Words, host: Words, desk: Own, el2: Words, page: U64, times: U64
) -> U64:
    """One page to the hypervisor and back, again and again: with join, a block broken and joined each time."""
    hyp = Hyp(shape, pool, pages, host, desk, el2)
    failed = u64(0)
    while times != 0:
        if host_donate_hyp(hyp, page, u64(1)) != u64(0):
            failed += u64(1)
        if hyp_donate_host(hyp, page, u64(1)) != u64(0):
            failed += u64(1)
        times -= u64(1)
    return failed


class PlainModel:
    """States alone, in dicts: what a donation and its return cost in plain Python without any table."""

    def __init__(self, pages: int) -> None:
        self.host = dict.fromkeys(range(pages), "OWNED")
        self.guest: dict[int, int] = {}

    def donate(self, page: int, gfn: int) -> None:
        if self.host[page] != "OWNED" or gfn in self.guest:
            raise PermissionError
        self.host[page] = "NOPAGE"
        self.guest[gfn] = page

    def reclaim(self, gfn: int) -> None:
        self.host[self.guest.pop(gfn)] = "OWNED"


def timed(call: Callable[..., int], *args: object) -> int:
    """Nanoseconds; the call returns how much failed."""
    start = time.perf_counter_ns()
    failed = call(*args)
    took = time.perf_counter_ns() - start
    if failed:
        sys.exit(f"{call}: {failed} calls failed")
    return took


def machine(discipline: str, size: int, *, join: bool = True, offset: int = 0) -> Pkvm:
    """Memory up to ``size`` bytes after BASE; with an ``offset`` there is no 1G block."""
    pool = Pool(2048 + 2 * (size // BLOCK))
    return Pkvm(arm_stage2(0x1000, 40), [(BASE + offset, size - offset)], pool=pool, discipline=discipline, join=join)


def guest_arrays(pkvm: Pkvm) -> tuple[Any, ...]:
    """A new guest (handle 1) and the arguments of transitions with it."""
    vm = pkvm.create_vm()
    shape, pool, pages, host = pkvm.words
    return shape, pool, pages, host, vm.table.mmu, pkvm.host.desks[0], pkvm.el2


_GUEST = 4
"""Place of the guest's words in ``guest_arrays``."""
give_back: Callable[..., int] = teardown_guest


def teardown(pkvm: Pkvm, guest: Any) -> float:
    """Nanoseconds to give back all that guest 1 has, whose table's mmu words are ``guest``."""
    pkvm.start_teardown(pkvm.vms[1])
    start = time.perf_counter_ns()
    give_back(pkvm.at(0), guest, 1, 0, 1 << 40)
    took = time.perf_counter_ns() - start
    pkvm.finalize_teardown(pkvm.vms[1])
    return took


def run(discipline: str) -> Iterator[tuple[str, float]]:
    """What was done, and nanoseconds each; once."""
    first, blocks = (BASE + BLOCK) >> 12, 400
    end = first + 512 * blocks
    for join in (True, False):
        pkvm = machine(discipline, GIB, join=join, offset=BLOCK)
        host = (*pkvm.words, pkvm.host.desks[0], pkvm.el2)
        yield "fault, 2M block", timed(fault_stripes, *host, first << 12, end << 12, BLOCK) / blocks
        arrays = guest_arrays(pkvm)
        yield "donate a page, breaking a 2M block", timed(donate_stripes, *arrays, first, end, 512) / blocks
        took = teardown(pkvm, arrays[_GUEST]) / blocks
        yield f"reclaim it, {'joining the block' if join else 'joining nothing (mainline)'}", took
        if not join:
            start = time.perf_counter_ns()
            joined = int(join_range(pkvm.at(0), first, end))
            yield "join a 2M block", (time.perf_counter_ns() - start) / joined
    pkvm = machine(discipline, GIB, offset=BLOCK)
    host = (*pkvm.words, pkvm.host.desks[0], pkvm.el2)
    fault_stripes(*host, first << 12, end << 12, BLOCK)
    arrays = guest_arrays(pkvm)
    yield DONATE, timed(donate_stripes, *arrays, first, first + MANY, 1) / MANY
    yield "guest shares a page, or unshares it", timed(lend_and_end, *arrays, MANY) / (2 * MANY)
    yield RECLAIM, teardown(pkvm, arrays[_GUEST]) / MANY
    pkvm.check()
    pkvm = machine(discipline, GIB)
    host = (*pkvm.words, pkvm.host.desks[0], pkvm.el2)
    pkvm.host_fault(BASE)
    yield "1G block: break it twice, join it twice", timed(donate_and_back, *host, BASE >> 12, 200) / 200
    pkvm = machine(discipline, GIB)
    host = (*pkvm.words, pkvm.host.desks[0], pkvm.el2)
    pkvm.host_donate_hyp(BASE, PAGE)
    yield (
        "fault, page, in a 2M block that lacks one",
        timed(fault_stripes, *host, BASE + PAGE, BASE + BLOCK, PAGE) / 511,
    )


def plain() -> dict[str, float]:
    """Nanoseconds of the plain model."""
    model = PlainModel(MANY)
    rows = {}
    start = time.perf_counter_ns()
    for page in range(MANY):
        model.donate(page, page)
    rows[DONATE] = (time.perf_counter_ns() - start) / MANY
    start = time.perf_counter_ns()
    for page in range(MANY):
        model.reclaim(page)
    rows[RECLAIM] = (time.perf_counter_ns() - start) / MANY
    return rows


def main() -> None:
    """Print a row a figure."""
    by: dict[str, dict[str, float]] = {"rwlock": {}, "walk_refs": {}}
    for _ in range(REPEAT):
        for discipline, rows in by.items():
            for name, took in run(discipline):
                rows[name] = min(rows.get(name, took), took)
    python = plain()
    print("| nanoseconds each | rwlock | walk_refs | plain Python, states only |")
    print("|---|---|---|---|")
    for name in by["rwlock"]:
        beside = f"{python[name]:.0f}" if name in python else ""
        print(f"| {name} | {by['rwlock'][name]:.0f} | {by['walk_refs'][name]:.0f} | {beside} |")


if __name__ == "__main__":
    main()
