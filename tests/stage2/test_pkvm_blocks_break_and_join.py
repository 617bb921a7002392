"""A donation breaks the block it lies in and nothing else; when a guest is gone the host's map is what it was."""

from __future__ import annotations

import random

import pytest

from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.pkvm import Pkvm, ProtectedVm
from guestmem.stage2.pool import Pool
from pkvm_machine import KINDS, Machine

DISCIPLINES = ["rwlock", "walk_refs"]


def donated(machine: Machine, rng: random.Random, count: int) -> tuple[ProtectedVm, list[int]]:
    """A guest with ``count`` pages from anywhere."""
    vm = machine.create_vm()
    places = [at for start, end in machine.regions for at in range(start, end, machine.page)]
    chosen = rng.sample(places, count)
    for frame, phys in enumerate(chosen):
        machine.host_donate_guest(vm, phys, frame * machine.page)
    return vm, chosen


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_donation_keeps_all_other_pages_mapped(kind: str, discipline: str, rng: random.Random) -> None:
    machine = Machine(kind, discipline=discipline)
    machine.fault_all()
    before = machine.mapped()
    _, chosen = donated(machine, rng, 5)
    assert machine.mapped() == {at: pa for at, pa in before.items() if at not in chosen}
    assert set(machine.marks()) == set(chosen)
    machine.check()


def test_one_page_breaks_one_block_of_each_size() -> None:
    machine = Machine()
    machine.fault_all()
    before = machine.leaves()
    machine.host_donate_guest(machine.create_vm(), 0x40000, 0)
    levels = [leaf.level for at, leaf in machine.leaves().items() if at not in before or before[at] != leaf]
    # A block of 64 pages becomes 7 of 8 pages and 7 pages.
    assert sorted(levels) == [2] * 7 + [3] * 7
    assert machine.counters()["blocks_broken"] == 2


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("kind", KINDS)
def test_after_teardown_the_map_is_what_it_was(kind: str, discipline: str, rng: random.Random) -> None:
    machine = Machine(kind, discipline=discipline)
    machine.fault_all()
    blocks = machine.leaves()
    tables = machine.pool.used - len(machine.pool.cached(machine.host.desks[0]))
    vm, chosen = donated(machine, rng, 20)
    for frame in range(0, 20, 3):
        machine.guest_share_host(vm, frame * machine.page)
    machine.host_share_guest(vm, next(iter(set(machine.mapped()) - set(chosen))), 0x40 * machine.page)
    assert machine.leaves() != blocks
    assert machine.teardown(vm) == 20
    assert machine.leaves() == blocks
    # No table is left over: what is taken more than before lies in the cache.
    assert machine.pool.used - len(machine.pool.cached(machine.host.desks[0])) == tables
    assert machine.counters()["wiped"] == 20 - 7
    machine.check()


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_mainline_never_joins_but_a_call_does(discipline: str, rng: random.Random) -> None:
    machine = Machine(discipline=discipline, join=False)
    machine.fault_all()
    blocks, mapped = machine.leaves(), machine.mapped()
    vm, _ = donated(machine, rng, 20)
    machine.teardown(vm)
    assert machine.mapped() == mapped
    assert len(machine.leaves()) > len(blocks)
    joined = sum(machine.join(start, end - start) for start, end in machine.regions)
    assert 0 < joined == machine.counters()["blocks_joined"] <= machine.counters()["blocks_broken"]
    assert machine.leaves() == blocks
    machine.check()


def test_a_block_waits_for_its_last_page() -> None:
    machine = Machine()
    machine.fault_all()
    blocks = machine.leaves()
    vm = machine.create_vm()
    for at in range(3):
        machine.host_donate_guest(vm, 0x40000 + 0x1000 * at, 0x1000 * at)
    machine.guest_share_host(vm, 0)  # mapped by the host, but not its own
    machine.start_teardown(vm)
    for at in (1, 2):
        machine.host_reclaim_guest(vm, 0x1000 * at)
        assert machine.counters()["blocks_joined"] == 0
        assert machine.join(0x40000, 0x40000) == 0
    machine.host_reclaim_guest(vm, 0)
    assert machine.counters()["blocks_joined"] == 2
    assert machine.leaves() == blocks


def test_pages_that_were_never_touched_come_back_lazily() -> None:
    machine = Machine()
    vm = machine.create_vm()
    machine.host_donate_guest(vm, 0x40000, 0)
    assert machine.mapped() == {}
    machine.host_fault(0x41000)
    assert machine.leaves()[0x41000].level == 3
    machine.teardown(vm)
    assert [leaf.level for leaf in machine.leaves().values()] == [1]
    machine.check()


def test_sharing_breaks_no_block() -> None:
    machine = Machine()
    machine.fault_all()
    blocks = machine.leaves()
    vm = machine.create_vm()
    machine.host_share_hyp(0x40000, 0x3000)
    machine.host_share_guest(vm, 0x48000, 0x8000, 0x8000)
    assert [leaf.level for leaf in machine.leaves(vm).values()] == [2]
    assert machine.leaves() == blocks
    machine.check()


def test_a_gibibyte_breaks_and_joins() -> None:
    """Real sizes: a 1G block, one page of it to a guest and back."""
    pkvm = Pkvm(arm_stage2(0x1000, 40), [(0x4000_0000, 0x4000_0000)], pool=Pool(64, base=0x1000_0000))
    pkvm.host_fault(0x5000_0000)
    vm = pkvm.create_vm()
    pkvm.host_donate_guest(vm, 0x5000_0000, 0)
    found = [pkvm.host.lookup(at) for at in (0x5000_1000, 0x4000_0000)]
    assert [seen and seen.level for seen in found] == [3, 2]
    pkvm.teardown(vm)
    whole = pkvm.host.lookup(0x5000_0000)
    assert whole is not None
    assert whole.level == 1
    assert pkvm.counters() == {
        "faults": 1,
        "blocks_broken": 2,
        "blocks_joined": 2,
        "wiped": 1,
        "mmio_unmapped": 0,
    }
