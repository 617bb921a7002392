"""Requests to vCPUs: a TLB flush against a fill, and a pause against vCPUs that run, with core tokens.

The vCPUs enter the guest, look for requests, wait and leave by the software engine's own functions; their access is
a look in a TLB of the model's own (``SmallGuest``), a fill if it misses, a look for requests, and the load itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_vm import SmallGuest, vm_label

__all__ = ["MODELS"]

_GFN, _FREED = 5, 0xDEAD


def _guest(scene: Scene, vcpus: int, cores: int) -> SmallGuest:
    at = scene.room("engines.soft.layout")
    guest = SmallGuest(scene, scene.words("vm", at.vm_words(vcpus), vm_label(scene)), scene.words("load", 8))
    guest.vm.cells[int(at.CORES)] = cores
    return guest


def _tokens_are_back(guest: SmallGuest) -> Callable[[Any], bool]:
    at = guest.at
    return lambda view: view.word("vm", int(at.NEXT_TICKET)) == view.word("vm", int(at.SERVING))


def flush(scene: Scene, vcpus: int, accesses: int, cores: int, *, turns: int = 1, flushes: int = 1) -> None:
    """An updater gives a frame other memory, has TLBs flushed, and reuses the old page; ``flushes`` times.

    A vCPU is in the guest ``turns`` times.
    """
    guest = _guest(scene, vcpus, cores)
    before = [scene.host("old page", [1]), *(scene.host(f"page {k}", [1 + k]) for k in range(1, flushes))]
    after = [*before[1:], scene.host("new page", [1 + flushes])]
    mapping = scene.words("mapping", before[:1])
    atomics = guest.atomics

    def run(own: Own, me: int) -> None:
        for _ in range(turns):
            turn(own, me)

    def turn(own: Own, me: int) -> None:
        guest.enter(own, me)
        for _ in range(accesses):
            while True:
                host = guest.lookup(own, _GFN)
                if host:
                    break
                guest.fill(own, _GFN, atomics.load_acquire(mapping, 0))
                guest.look(own, me)
            assert atomics.host_load(host) != _FREED, "a translation was used after its flush was acknowledged"
            guest.look(own, me)
        guest.leave(me)

    def update(targets: Own) -> None:
        for old, new in zip(before, after, strict=True):
            atomics.store_release(mapping, 0, new)
            guest.flush(vcpus, targets)
            atomics.host_store(old, _FREED)

    for me in range(vcpus):
        scene.thread(f"vCPU {me}", run, guest.guest_own(), me)
    scene.thread("updater", update, scene.own(vcpus))
    scene.final("every core token was given back", _tokens_are_back(guest))
    scene.final("no updater is left over", lambda view: view.word("vm", int(guest.at.WAITING)) == 0)


def pause(scene: Scene, vcpus: int, accesses: int, cores: int) -> None:
    """An updater pauses all vCPUs and changes two words that vCPUs only ever see change together."""
    guest = _guest(scene, vcpus, cores)
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
        scene.thread(f"vCPU {me}", run, guest.guest_own(), me)
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
    Model("flush", _FLUSH, "1 vCPU, 2 accesses, 1 flush", flush_1, stale=True),
    Model("flush-2", _FLUSH, "2 vCPUs, 1 core, 1 access each, 1 flush", flush_2),
    Model(
        "flush-again",
        _FLUSH,
        "1 vCPU, 1 core, in the guest twice, 1 access each, 2 flushes",
        flush_again,
    ),
    Model("flush-4", _FLUSH, "4 vCPUs, 2 cores, 2 accesses each, 1 flush", flush_many, exhaustive=False),
    Model("pause", _PAUSE, "1 vCPU, 2 accesses, 1 pause", pause_1, stale=True),
    Model("pause-2", _PAUSE, "2 vCPUs, 1 core, 1 access each, 1 pause", pause_2),
    Model("pause-4", _PAUSE, "4 vCPUs, 2 cores, 2 accesses each, 1 pause", pause_4, exhaustive=False),
)
