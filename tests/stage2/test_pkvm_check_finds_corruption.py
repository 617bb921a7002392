"""``check()`` of a machine names what is wrong when a state, a count or an entry is not what the others say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.atomics import peek, poke
from guestmem.errors import InvariantError
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.pkvm import ProtectedVm
from guestmem.stage2.pkvm.layout import AWAY_BASE, OWNED_PAGES, PAGE_BASE, VM_BASE
from pkvm_machine import Machine

OWNED, LENT, BORROWED, HYP, SHARED, POISONED, PLAIN = (0x40000 + 0x1000 * at for at in range(7))
OUTSIDE = 0x20000


def word(machine: Machine, phys: int) -> int:
    """Index of a page's word."""
    return int(peek(machine.el2, int(PAGE_BASE))) + (phys - 0x40000 >> 12)


def change(phys: int, bits: int) -> Callable[[Machine, ProtectedVm], None]:
    """Flip bits of a page's word."""

    def flip(machine: Machine, vm: ProtectedVm) -> None:
        del vm
        at = word(machine, phys)
        poke(machine.el2, at, peek(machine.el2, at) ^ bits)

    return flip


def count(machine: Machine, at: int) -> None:
    poke(machine.el2, at, peek(machine.el2, at) + 1)


CORRUPTIONS: dict[str, tuple[Callable[[Machine, ProtectedVm], object], str]] = {
    "a guest maps no memory": (lambda m, v: v.table.map(0, 0x1000, OUTSIDE, Rights.RWX), "no memory"),
    "a guest maps a page of the host's": (lambda m, v: v.table.map(0, 0x1000, PLAIN, Rights.RWX), "does not say so"),
    "a guest maps a page twice": (lambda m, v: v.table.map(0, 0x1000, OWNED, Rights.RWX), "two own|does not say so"),
    "a guest borrows what is not shared": (
        lambda m, v: v.table.map(0, 0x1000, PLAIN, Rights.RWX, software=2),
        "does not share it",
    ),
    "a guest borrows once more": (
        lambda m, v: v.table.map(0, 0x1000, BORROWED, Rights.RWX, software=2),
        "not as many as it maps",
    ),
    "a guest lost a page": (lambda m, v: v.table.unmap(OWNED, 0x1000), "not as many as it maps"),
    "a guest's page count": (
        lambda m, v: count(m, int(peek(m.el2, int(VM_BASE))) + 8 * v.handle + int(OWNED_PAGES)),
        "not as many as it maps",
    ),
    "a guest's mark": (lambda m, v: v.table.annotate(0, 0x1000, m.format.owned(2, 1)), "not poisoned"),
    "the host maps another page": (
        lambda m, v: (m.host.unmap(PLAIN, 0x1000), m.host.map(PLAIN, 0x1000, HYP, Rights.RWX)),
        "no identity map",
    ),
    "the host maps a region's edge as one": (
        lambda m, v: (m.host.unmap(0x100000, 0x40000), m.host.map(0x108000, 0x8000, 0x108000, Rights.RWX)),
        "memory and other",
    ),
    "the host may not execute memory": (
        lambda m, v: (m.host.unmap(PLAIN, 0x1000), m.host.map(PLAIN, 0x1000, PLAIN, Rights.RW)),
        "wrong rights",
    ),
    "the host may execute other addresses": (
        lambda m, v: m.host.map(OUTSIDE, 0x1000, OUTSIDE, Rights.RWX),
        "wrong rights",
    ),
    "the host's mark is gone": (lambda m, v: m.host.unmap(HYP, 0x1000), "could fault in"),
    "the host's mark names a guest for hyp's page": (
        lambda m, v: m.host.annotate(HYP, 0x1000, m.format.owned(2, 2)),
        "wrong owner",
    ),
    "the host's mark where it has a page": (
        lambda m, v: m.host.annotate(PLAIN, 0x1000, m.format.owned(2, 1)),
        "where it has a page",
    ),
    "a lent page is not mapped": (lambda m, v: m.host.unmap(LENT, 0x1000), "could fault in"),
    "two own": (change(PLAIN, 3 << 2), "two own"),
    "nobody owns": (change(HYP, 3 << 2), "wrong owner|exactly one"),
    "shared with nobody": (change(PLAIN, 1), "shared with nobody"),
    "shares miscounted": (change(BORROWED, 3 << 16), "not as many as its count"),
    "shared with hyp too": (change(BORROWED, 1 << 2), "with too many"),
    "a block's count": (lambda m, v: count(m, int(peek(m.el2, int(AWAY_BASE) + 2))), "count of pages away"),
    "a large block's count": (lambda m, v: count(m, int(peek(m.el2, int(AWAY_BASE) + 1))), "count of pages away"),
    "the pool": (lambda m, v: m.pool.alloc(), "leaked"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_is_found(name: str) -> None:
    machine = Machine(pool_pages=120)
    vm = machine.create_vm()
    machine.fault_all()
    for phys in (OWNED, LENT, POISONED):
        machine.host_donate_guest(vm, phys, phys)
    machine.guest_share_host(vm, LENT)
    machine.force_reclaim(POISONED)
    machine.host_share_guest(vm, BORROWED, BORROWED)
    machine.host_donate_hyp(HYP, 0x1000)
    machine.host_share_hyp(SHARED, 0x1000)
    machine.check()
    corrupt, said = CORRUPTIONS[name]
    corrupt(machine, vm)
    with pytest.raises(InvariantError, match=said):
        machine.check()
