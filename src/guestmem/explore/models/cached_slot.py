"""A vCPU's cached slot against updates: a record remembered with its generation is used only while it is right.

The vCPU looks up with a hint, in one section after another; updates move the slot, so that records are freed and used
again. In each section the record must be of the set that is active, or was when the section began.
"""

from __future__ import annotations

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_vm import SMALL, SmallVm

__all__ = ["MODELS"]

_GFN = 16


def build(scene: Scene, lookups: int, updates: int) -> None:
    """``updates`` batches re-host the slot, each to other memory; the vCPU looks it up ``lookups`` times."""
    vm = SmallVm(scene, 1, 1, [(0, _GFN, 1, _hva(0), 0)])
    atomics, lookup, layout = vm.atomics, scene.room("memslots.lookup"), scene.room("memslots.layout")
    srcu, atomic = scene.room("rcu.srcu"), scene.room("designs.atomic")
    done = scene.words("updates done", 1)

    def run(hint: Own, memslots: Words, state: Words) -> None:
        for _ in range(lookups):
            least = atomics.load_acquire(done, 0)
            srcu.srcu_enter(state, 0, 1)
            record = lookup.find_hinted(memslots, 0, _GFN, hint, 0)
            assert record, "the slot is there throughout"
            hva = layout.slot_userspace_addr(memslots, record)
            newest = hva // _hva(0) - 1
            assert _hva(newest) == hva, f"host address {hva:#x} is none that the slot ever had"
            assert newest >= least, f"a lookup found the slot as it was before update {least}"
            srcu.srcu_exit(state, 0, 1)

    def update(desk: Own, ranges: Own) -> Own:
        engine = vm.engine(desk, ranges)
        for number in range(1, updates + 1):
            atomic.apply(engine, [vm.change(0), vm.change(0, _GFN, 1, _hva(number))])
            atomics.store_release(done, 0, number)
        return desk

    scene.thread("vCPU 0", run, scene.own(2), vm.memslots, vm.srcu)
    scene.thread("updater", update, *vm.updater_own())
    vm.finals("updater")


def _hva(number: int) -> int:
    return 0x1000 * (1 + number)


def small(scene: Scene) -> None:
    """Two lookups, two updates."""
    build(scene, 2, 2)


_PROVES = "a slot found through a vCPU's cache is the one that a lookup in the active set finds"
MODELS = (Model("cached-slot", _PROVES, "1 vCPU, 2 lookups with a hint, 2 batches", small, geometry=SMALL, buffer=2),)
