"""A dirty log against writes: bits are taken, pages write-protected and flushed, then copied, while a vCPU writes.

Bitmap and requests are those of production; the TLB is the model's, and so is the right to write: one word, changed
under its lock as KVM does under ``mmu_lock``. A fault lifts the protection and sets the bit; who takes the bits
protects.
"""

from __future__ import annotations

from typing import Any

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_vm import SMALL, SmallVm

__all__ = ["MODELS"]

_GFN, _OTHER = 4, 1
_LOCK, _WRITABLE = 0, 1


def build(scene: Scene, writes: int, takes: int, *, clear: bool) -> None:
    """The vCPU writes a page ``writes`` times; another thread takes the log and copies the page, ``takes`` times.

    ``clear``: by KVM_CLEAR_DIRTY_LOG. A bit of another page of the same word is set all along by a third thread.
    """
    bitmaps = scene.room("dirty.bitmap")
    vm = SmallVm(scene, 1, 1)
    log = bitmaps.DirtyBitmap(64)
    bitmap = scene.words("bitmap", log.words, lambda i: ("dirty", "taken")[i])
    mmu = scene.words("mmu", 2, lambda i: ("mmu_lock", "writable")[i])
    page = scene.host("page", [0])
    atomics = vm.atomics

    def run(own: Own, mmu: Words) -> None:
        vm.enter(own, 0)
        for turn in range(writes):
            if turn:
                vm.look(own, 0)
            while not vm.lookup(own, _GFN, writes=True):
                scene.lock(mmu, _LOCK)
                atomics.store_relaxed(mmu, _WRITABLE, 1)
                bitmaps.bitmap_set(bitmap, 0)
                scene.unlock(mmu, _LOCK)
                vm.fill(own, _GFN, page)
                vm.look(own, 0)
            atomics.host_fetch_add(page, 1)
        vm.leave(0)

    def device(bitmap: Words) -> None:
        bitmaps.bitmap_set(bitmap, _OTHER)  # the host writes other memory of the slot

    def take(mmu: Words, bitmap: Words, targets: Own) -> tuple[int, int]:
        found = copied = 0
        for _ in range(takes):
            scene.lock(mmu, _LOCK)
            if clear:
                atomics.store_relaxed(bitmap, 1, atomics.load_relaxed(bitmap, 0))
                bitmaps.bitmap_clear(bitmap, 1, 0, 1, 64)
            else:
                bitmaps.bitmap_take(bitmap, 1)
            bits = atomics.load_relaxed(bitmap, 1)
            if bits & 1:
                atomics.store_relaxed(mmu, _WRITABLE, 0)
            scene.unlock(mmu, _LOCK)
            if bits & 1:
                vm.flush(1, targets)
                copied = atomics.host_load(page)
            found |= bits
        return int(copied), int(found)

    scene.thread("vCPU 0", run, vm.vcpu_own(0), mmu)
    scene.thread("device", device, bitmap)
    scene.thread("log", take, mmu, bitmap, scene.own(1))

    def not_lost(view: Any) -> bool:
        copied, found = view.result("log")
        dirty = view.word(bitmap, 0)
        return bool((dirty & 1 or copied == writes) and (dirty | found) & 1 << _OTHER)

    scene.final("every write is in a copy, or its page is dirty", not_lost)
    scene.final("no bit is set that no page has", lambda view: view.word(bitmap, 0) & ~(1 | 1 << _OTHER) == 0)
    vm.finals()


def get(scene: Scene) -> None:
    """KVM_GET_DIRTY_LOG."""
    build(scene, 2, 1, clear=False)


def manual(scene: Scene) -> None:
    """KVM_CLEAR_DIRTY_LOG."""
    build(scene, 2, 1, clear=True)


_PROVES = "no write is lost: it is in the copy made after the log was taken, or its page is dirty again"
MODELS = (
    Model(
        "dirty-log",
        _PROVES,
        "1 vCPU, 2 writes, 1 writer of a neighbour, 1 KVM_GET_DIRTY_LOG",
        get,
        geometry=SMALL,
        stale=True,
    ),
    Model("dirty-log-clear", _PROVES, "the same with KVM_CLEAR_DIRTY_LOG", manual, geometry=SMALL, stale=True),
)
