"""A host fault maps the largest block that lies in one region, or in none; others' pages are refused; when the pool is
empty, what is no memory makes room."""

from __future__ import annotations

import random

import pytest

from pkvm_machine import KINDS, Machine, outcome


def expected(machine: Machine, at: int) -> tuple[int, int]:
    """Start and size of the leaf: tried from the largest on, page by page."""
    end = 1 << machine.format.geometry.ipa_bits
    first = max(machine.format.min_block_level, machine.format.geometry.start_level)
    for size in machine.sizes[first:]:
        start = at // size * size
        bounds = [at for region in machine.regions for at in region if start < at < start + size]
        if not bounds and start + size <= end:
            return start, size
    raise AssertionError("a page always fits")


@pytest.mark.parametrize("discipline", ["rwlock", "walk_refs"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_block_that_fits(kind: str, discipline: str, rng: random.Random) -> None:
    machine = Machine(kind, discipline=discipline, cpus=2)
    edges = [at + by for region in machine.regions for at in region for by in (-machine.page, 0, machine.page)]
    anywhere = [rng.randrange(1 << 22) for _ in range(20 if kind == "8-entries" else 5)]  # others are slow to look at
    for number, at in enumerate([*edges, *anywhere]):
        before = machine.mapped()
        address = at + rng.randrange(machine.page)
        page = address // machine.page * machine.page
        assert machine.host_fault(address, cpu=number % 2) == (page not in before)
        start, size = expected(machine, page)
        leaf = machine.leaves()[start]
        assert (leaf.pa, machine.sizes[leaf.level]) == (start, size)
        memory = any(low <= start < high for low, high in machine.regions)
        assert leaf.rights == ("rwx" if memory else "rw-")
    machine.check()


def test_a_page_of_somebody_else() -> None:
    machine = Machine()
    vm = machine.create_vm()
    machine.host_donate_guest(vm, 0x40000, 0)
    machine.host_donate_hyp(0x42000, 0x2000)
    for at in (0x40000, 0x40FFF, 0x42000, 0x43000):
        assert outcome(machine.host_fault, at) == "EPERM"
    assert machine.host_fault(0x41000)
    machine.guest_share_host(vm, 0)
    assert not machine.host_fault(0x40000)  # mapped as it was lent
    machine.guest_unshare_host(vm, 0)
    assert outcome(machine.host_fault, 0x40000) == "EPERM"
    machine.check()


def test_other_mappings_make_room_for_memory() -> None:
    # A page of memory in each of eight blocks: all else in them is mapped through tables.
    machine = Machine(memory=[(0x40000 * at + 0x8000, 0x1000) for at in range(1, 9)], pool_pages=16, cache=4)
    assert machine.host_fault(0x48000)
    vm = machine.create_vm()
    others = [0x40000 * at + 0x9000 for at in range(1, 9)]
    for at in others:
        assert machine.host_fault(at)
        assert {0x48000, at} <= set(machine.mapped())
        machine.check()
    assert machine.counters()["mmio_unmapped"] > 0
    assert not set(others) <= set(machine.mapped())
    for at in range(1, 4):
        machine.host_donate_guest(vm, 0x40000 * at + 0x8000, 0x1000 * at)
    machine.check()
