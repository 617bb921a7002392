"""Rights that are taken above the slots (NR, NW, NX: ``designs.attributes``), on the path that production takes.

The slot stays; the vCPU holds a translation with all rights, which it has to lose before the update is over.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..small_engine import AGAIN, SmallEngine
from ..small_vm import SMALL

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_GFN, _MEMORY, _DENIED = 16, 1, 99
_READ, _WRITE, _FETCH = 0, 1, 2
_NO_RIGHT = 3
"""What ``stage2_exit`` comes to for an access that has no right."""
_EXITS = 3
"""Of an access, after which it is given up: retries are counted, so without a bound there is no end of states."""
_NW, _NX = 2, 1 << 19
_ALL = 1 << 17 | _NW | _NX


def build(scene: Scene, kinds: tuple[int, ...], flags: int) -> None:
    """A vCPU accesses a page by ``kinds``, one after the other, while ``attributes`` takes rights from its frame.

    The updater writes to the page when ``apply`` has returned: an access of the last kind that finds that came after
    the right to it had gone.
    """
    memory = scene.host("memory", [_MEMORY])
    small = SmallEngine(scene, [(0, _GFN, 1, memory)])
    atomics, apply = small.atomics, scene.room("designs.attributes").apply
    changes = [small.change(0), small.change(0, _GFN, 1, memory, flags)]

    def access(desk: Own, tlb: Own, own: Own, kind: int) -> int:
        """What it finds; 0 if it had no right, or was given up."""
        left = _EXITS
        while not small.reaches(tlb, _GFN << 12, kind):
            came = small.exit(desk, tlb, own, (_GFN, kind, False))
            if came != AGAIN:
                assert came == _NO_RIGHT, f"the slot is there all the time, but an access came to {came}"
                assert kind == kinds[-1], f"the right to an access of kind {kind} stays"
                return 0
            left -= 1
            if not left:
                return 0
        return int(atomics.host_load(small.host(tlb)))

    def vcpu(desk: Own, tlb: Own, own: Own) -> Own:
        small.enter(tlb, own)
        for turn, kind in enumerate(kinds):
            if turn:
                small.look(tlb, own)
            saw = access(desk, tlb, own, kind)
            assert saw != _DENIED or kind != kinds[-1], "an access was made after its right had gone"
        small.leave(tlb, own)
        return desk

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        apply(small.of(slots_desk, ranges, took, desk), changes)
        atomics.host_store(memory, _DENIED)
        return slots_desk, desk

    scene.thread("vCPU", vcpu, *small.vcpu_words())
    scene.thread("updater", updater, *small.updater_words())

    def sound(view: View) -> None:
        small.are_sound(*view.result("updater"), view.result("vCPU"))

    small.finals()
    scene.final("slots and tables are sound", sound)


def _model(name: str, kinds: tuple[int, ...], flags: int, what: str) -> Model:
    size = f"1 vCPU, {what}, 1 core, at most {_EXITS} exits each; SoftEngine, 8 table pages of 8 entries"
    proves = "a right that is taken above the slots is gone when the update is over, and no other one ever"
    body = partial(build, kinds=kinds, flags=flags)
    return Model(name, proves, size, body, geometry=SMALL, buffer=2, steps=4000, dpor=False)


MODELS = (
    _model("production-deny-fetch", (_READ, _FETCH), _NX, "a read and a fetch of a frame that gets NX"),
    _model("production-deny-write", (_READ, _WRITE), _NW, "a read and a write to a frame that gets NW"),
    _model("production-deny-read", (_READ,), _ALL, "a read of a frame that gets NR, NW and NX"),
)
