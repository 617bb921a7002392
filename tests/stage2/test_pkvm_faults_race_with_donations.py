"""Threads that fault, donate, share, reclaim and join at once: no fault brings a page back that the host gave away,
every status is one that its operation may have, and in the end all tables, states and counters agree."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from guestmem.atomics import fetch_add, load_relaxed, poke
from guestmem.compiled import U64, Own, Words, compiled, own, u64, words, wrapping
from guestmem.stage2.layout import EAGAIN, ENOENT, EPERM, OK, PAGE_SHIFT
from guestmem.stage2.pkvm.guest import guest_leaf, lock_both, unlock_both
from guestmem.stage2.pkvm.host import host_fault
from guestmem.stage2.pkvm.hyp import host_donate_hyp, hyp_donate_host
from guestmem.stage2.pkvm.join import join_page
from guestmem.stage2.pkvm.layout import EEXIST, EHWPOISON, SHARED_OWNED
from guestmem.stage2.pkvm.ownership import host_state
from guestmem.stage2.pkvm.reclaim import force_reclaim
from guestmem.stage2.pkvm.transitions import (
    guest_share_host,
    guest_unshare_host,
    host_donate_guest,
    host_share_guest,
    host_unshare_guest,
)
from guestmem.stage2.pkvm.words import Hyp
from guestmem.stage2.unmap import unmap_range
from guestmem.stage2.words import Table
from pkvm_machine import Machine
from slices import sliced

OPERATIONS = (
    "fault",
    "donate hyp",
    "back",
    "donate",
    "force",
    "share",
    "unshare",
    "lend",
    "end",
    "join",
    "forget",
)

MOST_ROUNDS = 100
"""An operation that no round has met so far, among a few hundred, is met by more rounds."""


@compiled(nogil=True)
def forget(shape: Own, pool: Words, pages: Words, host: Words, guest: Words, desk: Own, el2: Words, page: U64) -> None:
    """Unmap the host's own page, or its block: a fault brings it back; and lift the poison from a guest's frame."""
    guest_table = Table(shape, pool, pages, guest, desk)
    host_table = Table(shape, pool, pages, host, desk)
    lock_both(host, guest)
    if guest_leaf(guest_table, page) == EHWPOISON:
        unmap_range(guest_table, page << shape[PAGE_SHIFT], u64(1) << shape[PAGE_SHIFT], u64(0))
    if host_state(el2, page) <= SHARED_OWNED:
        to = shape[PAGE_SHIFT]
        unmap_range(host_table, page << to, u64(1) << to, u64(0))
    unlock_both(host, guest)


@compiled(nogil=True)
def wander(
    shape: Own,
    pool: Words,
    pages: Words,
    host: Words,
    guest: Words,
    desk: Own,
    el2: Words,
    seen: Own,
    busy: Words,
    seed: U64,
    times: U64,
    faults: U64,
) -> U64:
    """``times`` random operations on the first blocks of memory; returns the last random number.

    A CPU that only faults goes on until the others, ``busy`` of them, are done.

    ``faults``: of 16 operations, how many are host faults. ``seen``: of each operation how often it was OK, then faults
    that lost a race (11), refused (12), mapped already (13), unexpected (14).
    """
    hyp = Hyp(shape, pool, pages, host, desk, el2)
    one = u64(1)
    first = u64(0x40)
    done = u64(0)
    only_faults = faults == 16
    while done < times or (only_faults and load_relaxed(busy, u64(0)) != 0):
        done += one
        seed = seed ^ wrapping(seed << 13)
        seed = seed ^ (seed >> 7)
        seed = seed ^ wrapping(seed << 17)
        page = first + ((seed >> 8) & u64(0x7F))
        if (seed >> 20) & one == 1:
            page = first + ((seed >> 8) & u64(9))
        gfn = page
        kind = u64(0)
        if (seed >> 24) & u64(15) >= faults:
            kind = one + (seed >> 32) % u64(10)
        status = u64(OK)
        if kind == 0:
            status = host_fault(hyp, page << shape[PAGE_SHIFT])
        elif kind == 1:
            status = host_donate_hyp(hyp, page, one)
        elif kind == 2:
            status = hyp_donate_host(hyp, page, one)
        elif kind == 3:
            status = host_donate_guest(hyp, guest, one, page, gfn)
        elif kind == 4:
            status = force_reclaim(hyp, guest, one, page)
        elif kind == 5:
            gfn += u64(0x100)
            status = host_share_guest(hyp, guest, one, page, gfn, one)
        elif kind == 6:
            gfn += u64(0x100)
            status = host_unshare_guest(hyp, guest, one, gfn, one)
        elif kind == 7:
            status = guest_share_host(hyp, guest, one, gfn)
        elif kind == 8:
            status = guest_unshare_host(hyp, guest, one, gfn)
        elif kind == 9:
            join_page(hyp, page)
        else:
            forget(shape, pool, pages, host, guest, desk, el2, page)
        if status == OK:
            seen[kind] += one
        elif status == EAGAIN and kind == 0:
            seen[11] += one
        elif status == EPERM or (status == EHWPOISON and kind > 3) or (status == ENOENT and kind > 5):
            seen[12] += one
        elif status == EEXIST and kind == 0:
            seen[13] += one
        else:
            seen[14] = status + (kind << 32)
    if not only_faults:
        fetch_add(busy, u64(0), u64(0xFFFFFFFFFFFFFFFF))
    return seed


def stress(machine: Machine, rng: random.Random, *, times: int, seconds: float, faults: list[int]) -> list[int]:
    """Sums of what the CPUs saw; checked every now and then."""
    vm = machine.create_vm()
    seen = [own(16) for _ in faults]
    seeds = [rng.getrandbits(62) | 1 for _ in faults]
    failures: list[BaseException] = []
    busy = words(8)
    shape, pool, pages, host = machine.words

    def run(cpu: int) -> None:
        try:
            desk = machine.host.desks[cpu]
            arrays = (shape, pool, pages, host, vm.table.mmu, desk, machine.el2, seen[cpu])
            seeds[cpu] = int(wander(*arrays, busy, seeds[cpu], times, faults[cpu]))
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    def all_met() -> bool:
        return all(any(int(each[kind]) for each in seen) for kind in (*range(len(OPERATIONS)), 12, 13))

    end = time.monotonic() + seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < end or (rounds < MOST_ROUNDS and not all_met()):
        rounds += 1
        poke(busy, 0, sum(each < 16 for each in faults))
        threads = [threading.Thread(target=run, args=(cpu,)) for cpu in range(len(faults))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        machine.check()
    sums = [sum(int(each[word]) for each in seen) for word in range(16)]
    assert sums[14] == 0, f"operation {OPERATIONS[sums[14] >> 32]}: status {sums[14] & 0xFFFFFFFF}"
    machine.teardown(vm)
    for page in range(0x40, 0xC0):
        if machine.ownership(page << 12).host.name == "NOPAGE":
            machine.hyp_donate_host(page << 12, 0x1000)
    machine.fault_all()
    machine.check()
    first = [leaf.level for at, leaf in machine.leaves().items() if 0x40000 <= at < 0xC0000]
    if machine.regions[0][0] == 0x40000 and not machine.marks():
        assert first == [1, 1]
    return sums


@pytest.mark.parametrize("faults", [[16, 0], [8, 8]], ids=["fault against the rest", "all"])
@pytest.mark.parametrize("discipline", ["rwlock", "walk_refs"])
def test_two_cpus(discipline: str, faults: list[int], rng: random.Random, sized: Callable[[int, int], int]) -> None:
    machine = Machine(discipline=discipline, cpus=2, pool_pages=200)
    sums = stress(machine, rng, times=sized(20_000, 400), seconds=0, faults=faults)
    idle = [name for name, count in zip(OPERATIONS, sums, strict=False) if not count]
    assert idle == []
    assert sums[12] > 0  # refused
    assert sums[13] > 0  # mapped already


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("discipline", ["rwlock", "walk_refs"])
def test_four_cpus_for_some_time(discipline: str, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    machine = Machine(discipline=discipline, cpus=4, pool_pages=300)
    sums = stress(machine, rng, times=sized(20_000, 60), seconds=sliced(1, 10), faults=[16, 12, 4, 8])
    assert min(sums[:11]) > 0
