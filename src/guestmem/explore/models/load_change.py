"""Another load for vCPUs that run: who gives it waits for those in the guest, and those in the host look as they enter.

Exit (``stage2_exit``) and ``set_load`` are production's, on a ``SoftEngine`` that is cut down. An access of the load
before must not come after the new one was given, for its memory may be another's by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..small_engine import AGAIN, SmallEngine
from ..small_vm import SMALL

if TYPE_CHECKING:
    from ...compiled import Own

__all__ = ["MODELS"]

_GFN, _MINE, _FREED = 16, 1, 99
_READ = 0


def build(scene: Scene) -> None:
    """A vCPU reads a page, by way of a fault, while it is given another load and the page goes to somebody else."""
    page = scene.host("memory", [_MINE])
    small = SmallEngine(scene, [(0, _GFN, 1, page)])
    at, load = small.at, scene.room("engines.load").Load

    def vcpu(desk: Own, tlb: Own, own: Own) -> int:
        small.enter(tlb, own)
        saw = 0
        while own[at.LOADED] == 0:  # else the access is not made
            if small.reaches(tlb, _GFN << 12, _READ):
                saw = int(small.atomics.host_load(small.host(tlb)))
                assert saw != _FREED, "an access of the load before came after the new one was given"
                break
            came = small.exit(desk, tlb, own, (_GFN, _READ, True))
            assert came == AGAIN, f"the access came to {came}"
        small.leave(tlb, own)
        return saw

    def giver(*words: Own) -> None:
        small.of(*words).set_load(load([]))
        small.atomics.host_store(page, _FREED)

    scene.thread("vCPU", vcpu, *small.vcpu_words())
    scene.thread("giver", giver, *small.updater_words())
    scene.final("nobody waits any more", lambda view: view.word("vm", int(at.WAITING)) == 0)


MODELS = (
    Model(
        "load-change",
        "no access of one load is made once the next was given",
        "1 vCPU, 1 access by way of a fault, 1 new load, SoftEngine, 8 table pages of 8 entries",
        build,
        geometry=SMALL,
        buffer=2,
        stale=True,
        steps=4000,
        dpor=False,
    ),
)
