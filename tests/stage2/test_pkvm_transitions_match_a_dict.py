"""Random transitions, allowed or not, end as a dict of pages says, with the same errno; refused ones change nothing;
blocks are as large as ownership allows, and no page that the host keeps is ever unmapped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from guestmem.stage2.pkvm import ProtectedVm
from pkvm_machine import KINDS, Machine, outcome
from pkvm_oracle import FREE, LENDS, OWNED, USES, PkvmOracle

pytestmark = pytest.mark.slow


class Pair:
    """A machine and what it should be."""

    def __init__(self, kind: str, discipline: str, join: bool) -> None:
        self.machine = Machine(kind, discipline=discipline, join=join, cpus=2, max_vms=3, max_shares=3)
        page = self.machine.page
        self.memory = [at // page for start, end in self.machine.regions for at in range(start, end, page)]
        self.span = range(self.memory[0] - 2, self.memory[-1] + 3)
        self.block = self.machine.block // page
        frames = (1 << self.machine.format.geometry.ipa_bits) // page
        self.oracle = PkvmOracle(set(self.memory), self.block, 3, frames)
        self.vms: dict[int, ProtectedVm] = {}
        self.join = join
        self.before: set[int] = set()

    def step(self, rng: random.Random) -> tuple[str, str]:
        """One transition on both; its name and errno."""
        machine, oracle, size = self.machine, self.oracle, self.machine.page
        # A few places, so that transitions meet.
        hot = [self.memory[0], self.memory[self.block], self.memory[-1], *rng.sample(self.memory, 2)]
        page = rng.choice([*hot, hot[0] + rng.randrange(4), rng.choice(self.span)])
        gfn = rng.choice([0, 1, 2, 3, self.block, 2 * self.block + 1])
        vm = rng.choice([1, 1, 2])
        count = rng.choice([1, 1, 1, 2, self.block, self.block + 1])
        cpu = rng.randrange(2)
        name = rng.choice(NAMES)
        # Half of the time where it is allowed, if that is anywhere.
        wants = WANTS.get(name, ())
        right = []
        if name in ON_PAGES:
            right = [at for at, state in oracle.state.items() if state != FREE and set(state.values()) == set(wants)]
        frames = [key for key, leaf in oracle.leaf.items() if leaf and oracle.state[leaf[0]][key] in wants]
        if name == "host_reclaim_guest":
            frames = [key for key in frames if oracle.vms[key[0]] == "dying"]
        if right and rng.random() < 0.5:
            page, count = rng.choice(right), 1
        if frames and name not in ON_PAGES and rng.random() < 0.5:
            vm, gfn = rng.choice(frames)
            count = len(oracle.leaf[vm, gfn])
        pages = range(page, page + count)
        phys, ipa, length = page * size, gfn * size, count * size
        if name in {"host_share_hyp", "host_unshare_hyp"}:
            call = getattr(machine, name)
            return name, self.both(getattr(oracle, name)(pages), call, phys, length)
        if name in {"host_donate_hyp", "hyp_donate_host"}:
            return name, self.both(getattr(oracle, name)(pages), getattr(machine, name), phys, length, cpu=cpu)
        if name in {"hyp_pin", "hyp_unpin"}:
            wanted = oracle.pin(page, 1 if name == "hyp_pin" else -1)
            return name, self.both(wanted, getattr(machine, name), phys)
        if name == "host_fault":
            refused = page in oracle.state and "host" not in oracle.state[page]
            return name, self.both("EPERM" if refused else "", machine.host_fault, phys, cpu=cpu)
        if name == "force_reclaim":
            return name, self.both(oracle.force_reclaim(page), machine.force_reclaim, phys, cpu=cpu)
        if vm not in self.vms:
            made = machine.create_vm()
            vm = made.handle
            self.vms[vm] = made
            oracle.vms[vm] = "live"
        guest = self.vms[vm]
        if name == "host_donate_guest":
            wanted = oracle.host_donate_guest(vm, page, gfn)
            return name, self.both(wanted, machine.host_donate_guest, guest, phys, ipa, cpu=cpu)
        if name == "host_share_guest":
            if count == self.block:
                page, gfn = page // count * count, gfn // count * count + rng.choice([0, 0, 0, 1])
            wanted = oracle.host_share_guest(vm, page, gfn, count)
            call = machine.host_share_guest
            return name, self.both(wanted, call, guest, page * size, gfn * size, count * size, cpu=cpu)
        if name == "host_unshare_guest":
            wanted = oracle.host_unshare_guest(vm, gfn, count)
            return name, self.both(wanted, machine.host_unshare_guest, guest, ipa, count * size, cpu=cpu)
        if name == "start_teardown":
            wanted = oracle.live(vm)
            oracle.vms[vm] = "dying"
            return name, self.both(wanted, machine.start_teardown, guest)
        if name == "finalize_teardown":
            pages_left = [key for key, found in oracle.leaf.items() if key[0] == vm and found]
            wanted = "EBUSY" if oracle.vms[vm] == "live" or pages_left else ""
            if not wanted:
                oracle.teardown(vm)
                del self.vms[vm]
            return name, self.both(wanted, machine.finalize_teardown, guest)
        if name == "teardown":
            if oracle.vms[vm] == "live":
                assert machine.teardown(guest, cpu=cpu, budget=rng.choice([1, 3, 100])) == oracle.teardown(vm)
                del self.vms[vm]
            return name, ""
        return name, self.both(getattr(oracle, name)(vm, gfn), getattr(machine, name), guest, ipa, cpu=cpu)

    def both(self, wanted: str, call: Callable[..., object], *args: object, **named: object) -> str:
        kept = self.machine.everything() if wanted else None
        assert outcome(call, *args, **named) == wanted, (call, args)
        if wanted:
            assert self.machine.everything() == kept
        return wanted

    def compare(self) -> None:
        machine, oracle, size = self.machine, self.oracle, self.machine.page
        for page, state in oracle.state.items():
            seen = machine.ownership(page * size)
            guests = [(who, what) for who, what in state.items() if who not in {"host", "hyp"}]
            owner = next((who for who, what in guests if what == OWNED), (0, 0))
            assert (seen.host.name, seen.hyp.name) == (state.get("host", "NOPAGE"), state.get("hyp", "NOPAGE")), page
            assert (seen.guest, seen.gfn) == owner
            assert seen.shares == sum(what == USES for _, what in guests)
            assert seen.pins == oracle.pins.get(page, 0)
        kept = {page for page, state in oracle.state.items() if "host" in state}
        # The host maps itself, all and only what it has, and loses nothing that it keeps.
        mapped = machine.mapped()
        assert all(at == pa for at, pa in mapped.items())
        mine = {at // size for at in mapped} & set(self.memory)
        assert mine <= kept
        assert self.before & kept <= mine
        self.before = mine
        assert {at // size for at in machine.marks()} == set(self.memory) - kept
        for guest in self.vms.values():
            wanted = {
                (first + offset) * size: page * size
                for (handle, first), pages in oracle.leaf.items()
                if handle == guest.handle
                for offset, page in enumerate(pages)
            }
            assert machine.mapped(guest) == wanted
        if self.join:
            self.compare_blocks()
        machine.check()

    def compare_blocks(self) -> None:
        """No leaf could be larger: what blocks there are, in regions and all the host's own, stand whole."""
        whole = {page for page, state in self.oracle.state.items() if state in (FREE, {**state, "host": LENDS})}
        first = max(self.machine.format.min_block_level, self.machine.format.geometry.start_level)
        for at, leaf in self.machine.leaves().items():
            if first < leaf.level and at // self.machine.page in whole:
                larger = self.machine.sizes[leaf.level - 1]
                start = at // larger * larger
                pages = set(range(start // self.machine.page, (start + larger) // self.machine.page))
                in_region = any(low <= start and start + larger <= high for low, high in self.machine.regions)
                assert not (in_region and pages <= whole), f"{at:#x} at level {leaf.level}"


ON_PAGES = {"host_unshare_hyp", "hyp_pin", "hyp_unpin", "hyp_donate_host", "force_reclaim"}
WANTS = {
    "host_unshare_hyp": (LENDS, USES),
    "hyp_pin": (LENDS, USES),
    "hyp_unpin": (LENDS, USES),
    "hyp_donate_host": (OWNED,),
    "force_reclaim": (OWNED,),
    "host_unshare_guest": (USES,),
    "guest_share_host": (OWNED,),
    "guest_unshare_host": (LENDS,),
    "host_reclaim_guest": (OWNED, LENDS),
}
"""States of the page, or of the guest's frame, where a transition may be allowed."""

NAMES = [
    "host_share_hyp",
    "host_unshare_hyp",
    "host_donate_hyp",
    "hyp_donate_host",
    "hyp_pin",
    "hyp_unpin",
    "hyp_unpin",
    "host_fault",
    "host_fault",
    "host_fault",
    "force_reclaim",
    "force_reclaim",
    *["host_donate_guest"] * 4,
    *["host_share_guest"] * 4,
    "host_unshare_guest",
    "host_unshare_guest",
    "guest_share_host",
    "guest_share_host",
    "guest_unshare_host",
    "guest_unshare_host",
    *["host_reclaim_guest"] * 3,
    "start_teardown",
    "finalize_teardown",
    "finalize_teardown",
    "teardown",
]


def missing(seen: Counter[tuple[str, str]]) -> set[str]:
    """Transitions that were never done."""
    return set(NAMES) - {name for name, refused in seen if not refused}


@pytest.mark.parametrize("join", [True, False], ids=["join", "mainline"])
@pytest.mark.parametrize("discipline", ["rwlock", "walk_refs"])
@pytest.mark.parametrize("kind", KINDS)
def test_random_transitions(
    kind: str, discipline: str, join: bool, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    small = kind == "8-entries"
    if not small and sized(0, 1) and not (join and discipline == "walk_refs"):
        pytest.skip("interpreted, large tables are tried one way only")
    pair = Pair(kind, discipline, join)
    seen: Counter[tuple[str, str]] = Counter()
    least = sized(300, 250) if small else sized(8, 5)
    while sum(seen.values()) < least or (small and sum(seen.values()) < 10 * least and missing(seen)):
        seen[pair.step(rng)] += 1
        pair.compare()
    for vm in list(pair.vms.values()):
        if pair.oracle.vms[vm.handle] == "live":
            pair.machine.teardown(vm)
            pair.oracle.teardown(vm.handle)
            del pair.vms[next(key for key, each in pair.vms.items() if each is vm)]
    pair.compare()
    if small:
        assert missing(seen) == set()
        assert {refused for _, refused in seen} >= {"EPERM", "EINVAL", "ENOENT"}  # others: test_pkvm_refusals
