"""Every transition from every wrong state, and every bad argument, has its errno, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guestmem.errors import Stage2Error, UsageError
from guestmem.stage2.arm import ArmFormat
from guestmem.stage2.format import Annotations
from guestmem.stage2.geometry import Geometry
from guestmem.stage2.pkvm import Pkvm, ProtectedVm
from pkvm_machine import Machine, outcome, tiny

P, BLOCK, OUTSIDE, BEYOND = 0x40000, 0x8000, 0x20000, 1 << 22
"""A page at the start of a block of memory; the size of that block; no memory; the end of the input."""


def _lend(machine: Machine, vm: ProtectedVm) -> None:
    machine.host_donate_guest(vm, P, P)
    machine.guest_share_host(vm, P)


def _poison(machine: Machine, vm: ProtectedVm) -> None:
    machine.host_donate_guest(vm, P, P)
    machine.force_reclaim(P)


STATES: dict[str, Callable[[Machine, ProtectedVm], object]] = {
    "host": lambda m, v: None,
    "host and hyp": lambda m, v: m.host_share_hyp(P, 0x1000),
    "hyp": lambda m, v: m.host_donate_hyp(P, 0x1000),
    "host and guest": lambda m, v: m.host_share_guest(v, P, P),
    "guest": lambda m, v: m.host_donate_guest(v, P, P),
    "guest and host": _lend,
    "poisoned": _poison,
}
"""How page P, and frame P of guest v, come to be in each state."""

TRANSITIONS: dict[str, Callable[[Machine, ProtectedVm], object]] = {
    "host_share_hyp": lambda m, v: m.host_share_hyp(P, 0x1000),
    "host_unshare_hyp": lambda m, v: m.host_unshare_hyp(P, 0x1000),
    "host_donate_hyp": lambda m, v: m.host_donate_hyp(P, 0x1000),
    "hyp_donate_host": lambda m, v: m.hyp_donate_host(P, 0x1000),
    "hyp_pin": lambda m, v: m.hyp_pin(P),
    "host_fault": lambda m, v: m.host_fault(P),
    "force_reclaim": lambda m, v: m.force_reclaim(P),
    "host_donate_guest": lambda m, v: m.host_donate_guest(v, P, 0),
    "host_donate_guest, frame taken": lambda m, v: m.host_donate_guest(v, P + 0x1000, P),
    "host_share_guest": lambda m, v: m.host_share_guest(v, P, 0),
    "host_share_guest, block": lambda m, v: m.host_share_guest(v, P, 0, BLOCK),
    "host_unshare_guest": lambda m, v: m.host_unshare_guest(v, P),
    "guest_share_host": lambda m, v: m.guest_share_host(v, P),
    "guest_unshare_host": lambda m, v: m.guest_unshare_host(v, P),
}

ALLOWED = {
    "host_share_hyp": {"host", "poisoned"},
    "host_unshare_hyp": {"host and hyp"},
    "host_donate_hyp": {"host", "poisoned"},
    "hyp_donate_host": {"hyp"},
    "hyp_pin": {"host and hyp"},
    "host_fault": {"host", "host and hyp", "host and guest", "guest and host", "poisoned"},
    "force_reclaim": {"guest"},
    "host_donate_guest": {"host", "poisoned"},
    "host_donate_guest, frame taken": {"host", "host and hyp", "hyp"},
    "host_share_guest": {"host", "host and guest", "poisoned"},
    "host_share_guest, block": {"host", "host and guest", "poisoned"},
    "host_unshare_guest": {"host and guest"},
    "guest_share_host": {"guest"},
    "guest_unshare_host": {"guest and host"},
}
FRAME_FREE = {"host", "host and hyp", "hyp"}


def refusal(transition: str, state: str) -> str:
    """EPERM, but where a guest means a frame that it has not."""
    if state in ALLOWED[transition]:
        return ""
    if transition in {"host_unshare_guest", "guest_share_host", "guest_unshare_host"}:
        return "ENOENT" if state in FRAME_FREE else "EHWPOISON" if state == "poisoned" else "EPERM"
    return "EPERM"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_each_transition_from_each_state(transition: str, state: str) -> None:
    machine = Machine(pool_pages=120)
    vm = machine.create_vm()
    machine.host_fault(P)
    STATES[state](machine, vm)
    before = machine.everything()
    refused = outcome(TRANSITIONS[transition], machine, vm)
    assert refused == refusal(transition, state)
    # A fault on what is mapped is no refusal, and no change.
    unchanged = bool(refused) or transition == "host_fault"
    assert (machine.everything() == before) == unchanged
    machine.check()


ARGUMENTS: dict[str, tuple[str, Callable[[Machine, ProtectedVm], object]]] = {
    "pinned pages stay shared": ("EBUSY", lambda m, v: m.host_unshare_hyp(P, 0x2000)),
    "unpin without pin": ("EPERM", lambda m, v: m.hyp_unpin(P)),
    "share hyp, no memory": ("EINVAL", lambda m, v: m.host_share_hyp(OUTSIDE, 0x1000)),
    "share hyp, half no memory": ("EINVAL", lambda m, v: m.host_share_hyp(P - 0x1000, 0x2000)),
    "donate hyp, more than a table": ("EINVAL", lambda m, v: m.host_donate_hyp(P + BLOCK, 0x9000)),
    "donate hyp, one of them shared": ("EPERM", lambda m, v: m.host_donate_hyp(P, 0x8000)),
    "donate guest, no memory": ("EINVAL", lambda m, v: m.host_donate_guest(v, OUTSIDE, 0)),
    "donate guest, unaligned": ("EINVAL", lambda m, v: m.host_donate_guest(v, P + 0x3800, 0)),
    "donate guest, frame unaligned": ("EINVAL", lambda m, v: m.host_donate_guest(v, P + 0x3000, 8)),
    "donate guest, frame outside": ("ERANGE", lambda m, v: m.host_donate_guest(v, P + 0x3000, BEYOND)),
    "share guest, page outside": ("ERANGE", lambda m, v: m.host_share_guest(v, BEYOND, 0)),
    "share guest, no block": ("EINVAL", lambda m, v: m.host_share_guest(v, P + BLOCK, 0, 0x2000)),
    "share guest, unaligned block": ("EINVAL", lambda m, v: m.host_share_guest(v, P + 0x9000, 0, BLOCK)),
    "share guest, unaligned frame": ("EINVAL", lambda m, v: m.host_share_guest(v, P + BLOCK, 0x1000, BLOCK)),
    "share guest, too often": ("EBUSY", lambda m, v: m.host_share_guest(v, P + 0x5000, 0x30000)),
    "share guest, one of a block too often": (
        "EBUSY",
        lambda m, v: m.host_share_guest(v, P + 3 * BLOCK, 0, BLOCK),
    ),
    "share guest over a frame": ("EPERM", lambda m, v: m.host_share_guest(v, P + BLOCK, 0x20000, BLOCK)),
    "unshare one page of a block": ("E2BIG", lambda m, v: m.host_unshare_guest(v, 0x10000)),
    "unshare from within a block": ("EINVAL", lambda m, v: m.host_unshare_guest(v, 0x11000, BLOCK)),
    "unshare a block that is a page": ("E2BIG", lambda m, v: m.host_unshare_guest(v, 0x20000, BLOCK)),
    "guest shares from a block": ("E2BIG", lambda m, v: m.guest_share_host(v, 0x10000)),
    "reclaim from a live guest": ("EINVAL", lambda m, v: m.host_reclaim_guest(v, 0x28000)),
    "finalize a live guest": ("EBUSY", lambda m, v: m.finalize_teardown(v)),
    "force, no memory": ("EINVAL", lambda m, v: m.force_reclaim(OUTSIDE)),
    "fault outside": ("ERANGE", lambda m, v: m.host_fault(BEYOND)),
    "ownership of no memory": ("EINVAL", lambda m, v: m.ownership(OUTSIDE)),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(case: str) -> None:
    machine = Machine(pool_pages=120, max_shares=2)
    vm = machine.create_vm()
    machine.host_share_hyp(P, 0x2000)
    machine.hyp_pin(P + 0x1000)
    machine.host_share_guest(vm, P + 0x5000, 0x20000)
    machine.host_share_guest(vm, P + 0x5000, 0x21000)
    machine.host_share_guest(vm, P + 3 * BLOCK + 0x5000, 0x22000)
    machine.host_share_guest(vm, P + 3 * BLOCK + 0x5000, 0x23000)
    machine.host_share_guest(vm, P + 2 * BLOCK, 0x10000, BLOCK)
    machine.host_donate_guest(vm, P + 0x6000, 0x28000)
    before = machine.everything()
    wanted, call = ARGUMENTS[case]
    assert outcome(call, machine, vm) == wanted
    assert machine.everything() == before
    machine.check()


def test_the_phases_of_a_guest() -> None:
    machine = Machine(pool_pages=120, max_vms=1)
    vm = machine.create_vm()
    assert outcome(machine.create_vm) == "ENOMEM"
    machine.host_donate_guest(vm, P, 0)
    machine.host_share_guest(vm, P + 0x1000, 0x1000)
    machine.start_teardown(vm)
    before = machine.everything()
    assert outcome(machine.start_teardown, vm) == "EINVAL"
    assert outcome(machine.host_donate_guest, vm, P + 0x2000, 0x2000) == "EINVAL"
    assert outcome(machine.host_share_guest, vm, P + 0x2000, 0x2000) == "EINVAL"
    assert outcome(machine.guest_share_host, vm, 0) == "EINVAL"
    assert outcome(machine.finalize_teardown, vm) == "EBUSY"
    assert outcome(machine.host_reclaim_guest, vm, 0x1000) == "EPERM"
    assert outcome(machine.host_reclaim_guest, vm, 0x2000) == "ENOENT"
    assert machine.everything() == before
    machine.host_reclaim_guest(vm, 0)
    assert outcome(machine.finalize_teardown, vm) == "EBUSY"
    machine.host_unshare_guest(vm, 0x1000)
    machine.finalize_teardown(vm)
    for gone in (machine.start_teardown, machine.finalize_teardown, machine.teardown):
        assert outcome(gone, vm) == "ENOENT"
    assert outcome(machine.host_reclaim_guest, vm, 0) == "ENOENT"
    assert outcome(machine.host_donate_guest, vm, P, 0) == "ENOENT"
    assert machine.create_vm().handle == vm.handle
    # The old guest is not the new one, though they have the same handle.
    assert outcome(machine.host_donate_guest, vm, P, 0) == "ENOENT"
    machine.check()


def test_no_table_pages() -> None:
    machine = Machine(pool_pages=24, cache=4)
    vm = machine.create_vm()
    held: list[int] = []
    while not outcome(lambda: held.append(machine.pool.alloc())):
        pass
    assert machine.host_fault(P)  # a block needs no table
    before = machine.everything()
    assert outcome(machine.host_donate_guest, vm, P, 0x80000) == "ENOMEM"
    assert outcome(machine.host_share_guest, vm, P, 0x80000) == "ENOMEM"
    assert outcome(machine.host_donate_hyp, P, 0x1000) == "ENOMEM"
    assert outcome(machine.create_vm) == "ENOMEM"
    assert outcome(machine.host_fault, 0x10A000) == "ENOMEM"
    assert machine.everything() == before
    for page in held:
        machine.pool.free(page)
    machine.host_donate_guest(vm, P, 0x80000)
    machine.check()


@pytest.mark.parametrize(
    ("named", "match"),
    [
        ({"memory": []}, "memory: no region"),
        ({"memory": [(0x1000, 0x1000), (0x2000, 0x1000)]}, "apart"),
        ({"discipline": "rcu"}, "EL2 has no RCU"),
        ({"max_shares": 0}, "max_shares: 0 is not in 1..65535"),
        ({"max_vms": 1 << 16}, "max_vms: 65536"),
        ({"cache": 3}, "cache: 3 pages are not at least 4"),
    ],
)
def test_bad_machines(named: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Machine(**named)


def test_bad_formats_and_regions() -> None:
    old = ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_6_2)
    with pytest.raises(UsageError, match=r"Linux 6\.2 have no room"):
        Pkvm(old, [(0, 0x1000)])
    with pytest.raises(Stage2Error, match="EINVAL: size: 0x800"):
        Pkvm(tiny(), [(0, 0x800)])
    with pytest.raises(Stage2Error, match="ERANGE"):
        Pkvm(tiny(), [(0x3FF000, 0x2000)])
