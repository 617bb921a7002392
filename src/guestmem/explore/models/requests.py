"""Requests to vCPUs: a TLB flush against a fill, and a pause against vCPUs that run, with core tokens.

The vCPUs enter the guest, look for requests, wait and leave by the software engine's own functions; their access is
a look in the TLB, a fill if it misses, a look for requests, and the load itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_vm import vm_label
from ..twin import Mutation

__all__ = ["MODELS"]

_GFN, _FREED = 5, 0xDEAD
_SMALL = (Mutation("engines/soft/layout.py", "TLB_ENTRIES = const(256)", "TLB_ENTRIES = const(2)"),)


class Guest:
    """The words of a VM of ``vcpus`` vCPUs, and what its threads call."""

    def __init__(self, scene: Scene, vcpus: int, cores: int) -> None:
        self.at = scene.room("engines.soft.layout")
        self.atomics = scene.room("atomics")
        self.requests, self.vcpu = scene.room("engines.soft.requests"), scene.room("engines.soft.vcpu")
        self.tlb, self.cores = scene.room("engines.soft.tlb"), scene.room("engines.soft.cores")
        self.vm = scene.words("vm", self.at.vm_words(vcpus), vm_label(scene))
        self.load = scene.words("load", 8)
        self.vm.cells[int(self.at.CORES)] = cores

    def enter(self, own: Own, vcpu: int) -> None:
        """Enter the guest; these models do not stop VMs."""
        assert self.vcpu.enter_guest(self.vm, self.load, own, vcpu), "the VM does not stop"

    def look(self, own: Own, vcpu: int) -> None:
        """Look for requests."""
        assert self.vcpu.look(self.vm, self.load, own, vcpu), "the VM does not stop"

    def leave(self, vcpu: int) -> None:
        """Leave the guest for good."""
        self.requests.leave_guest(self.vm, vcpu, self.at.OUTSIDE)
        self.cores.give_core(self.vm)


def _tokens_are_back(guest: Guest) -> Callable[[Any], bool]:
    at = guest.at
    return lambda view: view.word("vm", int(at.NEXT_TICKET)) == view.word("vm", int(at.SERVING))


def flush(scene: Scene, vcpus: int, accesses: int, cores: int, *, turns: int = 1, flushes: int = 1) -> None:
    """An updater gives a frame other memory, has TLBs flushed, and reuses the old page; ``flushes`` times.

    A vCPU is in the guest ``turns`` times.
    """
    guest = Guest(scene, vcpus, cores)
    before = [scene.host("old page", [1]), *(scene.host(f"page {k}", [1 + k]) for k in range(1, flushes))]
    after = [*before[1:], scene.host("new page", [1 + flushes])]
    mapping = scene.words("mapping", before[:1])
    atomics, requests, tlb = guest.atomics, guest.requests, guest.tlb

    def run(own: Own, me: int) -> None:
        for _ in range(turns):
            turn(own, me)

    def turn(own: Own, me: int) -> None:
        guest.enter(own, me)
        for _ in range(accesses):
            while True:
                host = tlb.tlb_lookup(own, _GFN, False)
                if host:
                    break
                tlb.tlb_fill(own, _GFN, atomics.load_acquire(mapping, 0), True)
                guest.look(own, me)
            assert atomics.host_load(host) != _FREED, "a translation was used after its flush was acknowledged"
            guest.look(own, me)
        guest.leave(me)

    def update(vm: Words, targets: Own) -> None:
        for old, new in zip(before, after, strict=True):
            atomics.store_release(mapping, 0, new)
            requests.ask_for_flush(vm)
            requests.request_all(vm, vcpus, targets)
            requests.wait_for_acknowledgements(vm, vcpus, targets)
            atomics.host_store(old, _FREED)

    for me in range(vcpus):
        scene.thread(f"vCPU {me}", run, scene.own(int(guest.at.OWN_WORDS)), me)
    scene.thread("updater", update, guest.vm, scene.own(vcpus))
    scene.final("every core token was given back", _tokens_are_back(guest))
    scene.final("no updater is left over", lambda view: view.word("vm", int(guest.at.WAITING)) == 0)


def pause(scene: Scene, vcpus: int, accesses: int, cores: int) -> None:
    """An updater pauses all vCPUs and changes two words that vCPUs only ever see change together."""
    guest = Guest(scene, vcpus, cores)
    pair = scene.host("pair", [0, 0])
    atomics, requests = guest.atomics, guest.requests

    def run(own: Own, me: int) -> None:
        guest.enter(own, me)
        for turn in range(accesses):
            if turn:
                guest.look(own, me)
            first = atomics.host_load(pair)
            assert atomics.host_load(pair + 8) == first, "a vCPU ran while all were paused"
        guest.leave(me)

    def update(vm: Words, targets: Own) -> None:
        requests.pause_all(vm)
        requests.request_all(vm, vcpus, targets)
        requests.wait_until_outside(vm, vcpus)
        atomics.host_store(pair, 1)
        atomics.host_store(pair + 8, 1)
        requests.resume_all(vm)

    for me in range(vcpus):
        scene.thread(f"vCPU {me}", run, scene.own(int(guest.at.OWN_WORDS)), me)
    scene.thread("updater", update, guest.vm, scene.own(vcpus))
    scene.final("every core token was given back", _tokens_are_back(guest))
    scene.final("no updater is left over", lambda view: view.word("vm", int(guest.at.WAITING)) == 0)


def flush_1(scene: Scene) -> None:
    """One vCPU."""
    flush(scene, 1, 2, 1)


def flush_2(scene: Scene) -> None:
    """Two vCPUs, one core: the one outside flushes when it enters."""
    flush(scene, 2, 1, 1)


def flush_again(scene: Scene) -> None:
    """One vCPU that comes again, two flushes."""
    flush(scene, 1, 1, 1, turns=2, flushes=2)


def flush_many(scene: Scene) -> None:
    """Four vCPUs, two cores."""
    flush(scene, 4, 2, 2)


def pause_1(scene: Scene) -> None:
    """One vCPU."""
    pause(scene, 1, 2, 1)


def pause_2(scene: Scene) -> None:
    """Two vCPUs, one core: tokens change hands."""
    pause(scene, 2, 1, 1)


def pause_4(scene: Scene) -> None:
    """Four vCPUs, two cores."""
    pause(scene, 4, 2, 2)


_FLUSH = "no vCPU uses a translation once its flush is acknowledged, and every acknowledgement arrives"
_PAUSE = "no vCPU is in the guest while a pause is in force, and every pause begins and ends"
MODELS = (
    Model("flush", _FLUSH, "1 vCPU, 2 accesses, 1 flush", flush_1, geometry=_SMALL, stale=True),
    Model("flush-2", _FLUSH, "2 vCPUs, 1 core, 1 access each, 1 flush", flush_2, geometry=_SMALL),
    Model(
        "flush-again",
        _FLUSH,
        "1 vCPU, 1 core, in the guest twice, 1 access each, 2 flushes",
        flush_again,
        geometry=_SMALL,
    ),
    Model(
        "flush-4", _FLUSH, "4 vCPUs, 2 cores, 2 accesses each, 1 flush", flush_many, geometry=_SMALL, exhaustive=False
    ),
    Model("pause", _PAUSE, "1 vCPU, 2 accesses, 1 pause", pause_1, geometry=_SMALL, stale=True),
    Model("pause-2", _PAUSE, "2 vCPUs, 1 core, 1 access each, 1 pause", pause_2, geometry=_SMALL),
    Model("pause-4", _PAUSE, "4 vCPUs, 2 cores, 2 accesses each, 1 pause", pause_4, geometry=_SMALL, exhaustive=False),
)
