"""Designs against accesses: a batch that re-hosts two slots, under the designs that people proposed, and vCPUs.

Slots of one frame each get other host memory in one batch. The old pages hold 1, the new ones 2. Every access says
what it saw: nothing of a batch must be seen in parts, nothing must be missing, and what one access has seen of the new
memory no later access may have lost again; and once the batch is over, nothing touches the old pages. "Later" is what
the program's order or an acquired flag makes so, which is what a guest can tell.

Between an access and the slots stand no tables, but a TLB and a fault of ``SmallVm``; ``production`` has the tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...compiled import Own
from ..scene import Model, Scene
from ..small_vm import SMALL, SmallVm

__all__ = ["MODELS"]

_GFN, _OLD, _NEW, _FREED = 16, 1, 2, 99
_READONLY = 2


def build(scene: Scene, design: str, orders: Sequence[Sequence[int]], *, cores: int = 1, atomic: bool = True) -> None:
    """VCPU k reads the frames ``orders[k]``, in that order, while ``design`` re-hosts all of them.

    ``atomic``: one instant must explain all that was seen; otherwise only that no access met a hole.
    """
    frames = 1 + max(max(order) for order in orders)
    old = [scene.host(f"old page {frame}", [_OLD]) for frame in range(frames)]
    new = [scene.host(f"new page {frame}", [_NEW]) for frame in range(frames)]
    vm = SmallVm(scene, len(orders), cores, [(frame, _GFN + frame, 1, old[frame], 0) for frame in range(frames)])
    atomics, apply = vm.atomics, scene.room(f"designs.{design}").apply
    told = scene.words("told", 1, lambda _: "somebody saw the new memory") if len(orders) > 1 else None
    changes = [
        *(vm.change(frame) for frame in range(frames)),
        *(vm.change(frame, _GFN + frame, 1, new[frame]) for frame in range(frames)),
    ]

    def run(own: Own, me: int) -> None:
        vm.enter(own, me)
        newest = 0
        for turn, frame in enumerate(orders[me]):
            if turn:
                vm.look(own, me)
            if told is not None:
                newest = newest or int(atomics.load_acquire(told, 0))
            host = vm.translate(own, me, _GFN + frame)
            assert host, f"frame {frame} has memory before and after, but an access met a hole"
            saw = atomics.host_load(host)
            assert saw != _FREED, "an access went to the old memory after the batch was over"
            assert saw == _NEW or not (newest and atomic), "an access saw the old memory after one that saw the new"
            newest = newest or int(saw == _NEW)
            if told is not None and newest:
                atomics.store_release(told, 0, 1)
        vm.leave(me)

    def update(desk: Own, ranges: Own) -> Own:
        apply(vm.engine(desk, ranges), changes)
        for page in old:
            atomics.host_store(page, _FREED)
        return desk

    for me in range(len(orders)):
        scene.thread(f"vCPU {me}", run, vm.vcpu_own(me), me)
    scene.thread("updater", update, *vm.updater_own())
    vm.finals("updater")


def protect(scene: Scene, design: str) -> None:
    """A vCPU reads, then writes, while ``design`` makes the slot read-only; what is copied then stays."""
    page = scene.host("page", [0])
    vm = SmallVm(scene, 1, 1, [(0, _GFN, 1, page, 0)])
    atomics, apply = vm.atomics, scene.room(f"designs.{design}").apply
    changes = [vm.change(0), vm.change(0, _GFN, 1, page, _READONLY)]

    def run(own: Own) -> int:
        vm.enter(own, 0)
        atomics.host_load(vm.translate(own, 0, _GFN))
        vm.look(own, 0)
        host = vm.translate(own, 0, _GFN, writes=True)
        if host:
            atomics.host_fetch_add(host, 1)
        vm.leave(0)
        return int(host != 0)

    def update(desk: Own, ranges: Own) -> tuple[Own, int]:
        apply(vm.engine(desk, ranges), changes)
        return desk, int(atomics.host_load(page))

    scene.thread("vCPU 0", run, vm.vcpu_own(0))
    scene.thread("updater", update, *vm.updater_own())
    scene.final("no write came after the batch", lambda view: view.result("updater")[1] == view.word("page", 0))
    scene.final("no write was lost", lambda view: view.result("vCPU 0") == view.word("page", 0))
    vm.finals("updater")


def sequential(scene: Scene) -> None:
    """KVM today."""
    build(scene, "sequential", [[0]])


def paused(scene: Scene) -> None:
    """Delete and create while nobody runs."""
    build(scene, "pause", [[0, 0]])


def batch(scene: Scene) -> None:
    """The RFC of 2022 on x86, which retries."""
    build(scene, "batch", [[0]])


def atomic(scene: Scene) -> None:
    """Two frames, one after the other."""
    build(scene, "atomic", [[0, 1]])


def atomic_1(scene: Scene) -> None:
    """One frame, small enough for weak memory."""
    build(scene, "atomic", [[0]])


def atomic_2(scene: Scene) -> None:
    """Two vCPUs, each of which tells when it has seen the new memory."""
    build(scene, "atomic", [[0, 1], [1, 0]], cores=2)


def unacknowledged(scene: Scene) -> None:
    """As atomic, but without the wait for acknowledgements."""
    build(scene, "atomic_unacknowledged", [[0]])


def read_only(scene: Scene) -> None:
    """Fewer rights."""
    protect(scene, "atomic")


_HOLE = "deleting and creating a slot leaves no hole that an access can meet"
_INSTANT = "one instant explains what every access saw: before it the old memory, after it the new, never a hole"
_KEPT = "no write comes after a batch that took the right to write, and none is lost"
MODELS = (
    Model("sequential", _HOLE, "1 vCPU, 1 access, delete and create", sequential, geometry=SMALL, finds="assertion"),
    Model("pause-batch", _INSTANT, "1 vCPU, 2 accesses, delete and create in a pause", paused, geometry=SMALL),
    Model("batch", _INSTANT, "1 vCPU, 1 access, a batch of delete and create (x86)", batch, geometry=SMALL, buffer=2),
    Model("atomic", _INSTANT, "1 vCPU, 2 accesses, a batch that re-hosts 2 slots", atomic, geometry=SMALL, buffer=2),
    Model(
        "atomic-1",
        _INSTANT,
        "1 vCPU, 1 access, a batch that re-hosts a slot",
        atomic_1,
        geometry=SMALL,
        buffer=2,
        stale=True,
    ),
    Model(
        *("atomic-2", _INSTANT, "2 vCPUs, 2 cores, 2 accesses each, a batch that re-hosts 2 slots", atomic_2),
        geometry=SMALL,
        exhaustive=False,
    ),
    Model(
        *("atomic-unacknowledged", _INSTANT, "1 vCPU, 1 access, a batch that re-hosts a slot", unacknowledged),
        geometry=SMALL,
        finds="assertion",
    ),
    Model(
        "atomic-readonly",
        _KEPT,
        "1 vCPU, a read and a write, a batch that makes a slot read-only",
        read_only,
        geometry=SMALL,
        stale=True,
    ),
)
