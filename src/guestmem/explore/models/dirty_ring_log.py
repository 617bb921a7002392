"""A dirty ring against writes: an entry is harvested and given back, its page protected, flushed, copied.

As ``dirty_log``, with the ring of production in the bitmap's place: a fault pushes an entry and lets writes through,
under the lock; user space harvests; the reset gives entries back and write-protects what they name; then it copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..small_vm import SMALL, SmallVm

if TYPE_CHECKING:
    from ...compiled import Own, Words
    from ..view import View

__all__ = ["MODELS"]

_GFN, _SLOT, _SIZE = 4, 7, 2
_LOCK, _WRITABLE = 0, 1


def build(scene: Scene, writes: int, looks: int) -> None:
    """The vCPU writes a page ``writes`` times; user space looks for entries ``looks`` times, resets, and copies."""
    rings = scene.room("dirty.ring")
    vm = SmallVm(scene, 1, 1)
    made = rings.DirtyRing(_SIZE, reserved=0)
    names = {int(rings.DIRTY_INDEX): "dirty index", int(rings.RESET_INDEX): "reset index"}
    ring = scene.words("ring", made.words, lambda index: names.get(index, f"word {index}"))
    mmu = scene.words("mmu", 2, lambda i: ("mmu_lock", "writable")[i])
    page = scene.host("page", [0])
    atomics = vm.atomics

    def run(own: Own, mmu: Words, ring: Words) -> int:
        pushed = 0
        vm.enter(own, 0)
        for turn in range(writes):
            if turn:
                vm.look(own, 0)
            while not vm.lookup(own, _GFN, writes=True):
                scene.lock(mmu, _LOCK)
                if not atomics.load_relaxed(mmu, _WRITABLE):
                    atomics.store_relaxed(mmu, _WRITABLE, 1)
                    rings.ring_push(ring, _SIZE, _SIZE, _SLOT, _GFN)
                    pushed += 1
                scene.unlock(mmu, _LOCK)
                vm.fill(own, _GFN, page)
                vm.look(own, 0)
            atomics.host_fetch_add(page, 1)
        vm.leave(0)
        return pushed

    def user(mmu: Words, ring: Words, out: Own, runs: Own, targets: Own) -> tuple[int, int]:
        taken = 0
        for _ in range(looks):
            taken += int(rings.ring_harvest(ring, _SIZE, taken, out))
        given = int(rings.ring_reset(ring, _SIZE, runs, _SIZE))
        for at in range(1, 1 + 3 * int(runs[0]), 3):
            assert (runs[at], runs[at + 1], runs[at + 2]) == (_SLOT, _GFN, 1), "a run of another page"
            scene.lock(mmu, _LOCK)
            atomics.store_relaxed(mmu, _WRITABLE, 0)
            scene.unlock(mmu, _LOCK)
        vm.flush(1, targets)
        return given, int(atomics.host_load(page))

    scene.thread("vCPU 0", run, vm.vcpu_own(0), mmu, ring)
    scene.thread("user space", user, mmu, ring, scene.own(2), scene.own(1 + 3 * _SIZE), scene.own(1))

    def not_lost(view: View) -> bool:
        given, copied = view.result("user space")
        return bool(given < view.result("vCPU 0") or copied == writes)

    scene.final("every write is in the copy, or its page is in the ring", not_lost)
    scene.final("entries are harvested ones, then dirty ones, then free ones", lambda _view: made.check())
    vm.finals()


def small(scene: Scene) -> None:
    """Two writes, one look."""
    build(scene, 2, 1)


_PROVES = "no write is lost: it is in the copy made after the ring was reset, or its page is in the ring again"
MODELS = (
    Model(
        "dirty-ring-log",
        _PROVES,
        "1 vCPU, 2 writes, 1 look, 1 reset and copy, 2 entries",
        small,
        geometry=SMALL,
        stale=True,
    ),
)
