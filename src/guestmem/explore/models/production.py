"""Designs on the path that production takes: ``SoftEngine``, a vCPU that exits and faults, and ``apply``.

Engine, slots, SRCU, requests, flux, core tokens, stage-2 table, zaps, TLB, walks and faults are those that run; only
sizes are cut (``small_engine``). A slot of one frame gets other host memory; the vCPU reads it once (enter, walk, exit,
fault, look, walk again), and the old page is freed when ``apply`` has returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_engine import AGAIN, SmallEngine
from ..small_vm import SMALL

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_GFN, _OLD, _NEW, _FREED = 16, 1, 2, 99
_READ, _WRITE = 0, 1
_READONLY, _MET_READONLY = 2, 3


def build(
    scene: Scene,
    design: str,
    orders: Sequence[Sequence[int]],
    *,
    atomic: bool = True,
    exits: int = 0,
    phases: bool = False,
) -> None:
    """VCPU k reads the frames ``orders[k]``, in that order, while ``design`` gives all of them other memory.

    ``overlays``: ``overlay`` without the slots. ``exits``: of an access, after which it is given up. ``atomic``: nobody
    sees the old memory after somebody saw the new. ``phases``: ``atomic`` goes by them, as it does where a log, a file
    or another map follows the slots.
    """
    frames = 1 + max(map(max, orders))
    old = [scene.host(f"old page {frame}", [_OLD]) for frame in range(frames)]
    new = [scene.host(f"new page {frame}", [_NEW]) for frame in range(frames)]
    small = SmallEngine(scene, [(frame, _GFN + frame, 1, old[frame]) for frame in range(frames)], vcpus=len(orders))
    small.engine.short_cut = not phases
    atomics, change = small.atomics, small.change
    told = scene.words("told", 1, lambda _: "somebody saw the new memory") if len(orders) > 1 else None
    apply = _show if design == "overlays" else scene.room(f"designs.{design}").apply
    changes = [
        *(change(frame) for frame in range(frames)),
        *(change(frame, _GFN + frame, 1, new[frame]) for frame in range(frames)),
    ]

    def access(desk: Own, tlb: Own, own: Own, me: int, frame: int) -> int:
        """What an access finds; 0 if it was given up."""
        left = exits
        while not small.reaches(tlb, (_GFN + frame) << 12, _READ):
            if exits and not left:
                return 0  # each retry is counted, so without a bound there would be no end of states
            left -= 1
            came = small.exit(desk, tlb, own, (_GFN + frame, _READ, True), me)
            assert came == AGAIN, f"frame {frame} has memory before and after, but an access came to {came}"
        return int(atomics.host_load(small.host(tlb)))

    def vcpu(desk: Own, tlb: Own, own: Own, me: int) -> Own:
        small.enter(tlb, own, me)
        newest = 0
        for turn, frame in enumerate(orders[me]):
            if turn:
                small.look(tlb, own, me)
            if told is not None:
                newest = newest or int(atomics.load_acquire(told, 0))
            saw = access(desk, tlb, own, me, frame)
            assert saw != _FREED, "an access went to the old memory after the batch was over"
            assert saw in {0, _NEW} or not (newest and atomic), (
                "an access saw the old memory after one that saw the new"
            )
            newest = newest or int(saw == _NEW)
            if told is not None and newest:
                atomics.store_release(told, 0, 1)
        small.leave(tlb, own, me)
        return desk

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        apply(small.of(slots_desk, ranges, took, desk), changes)
        for page in old:
            atomics.host_store(page, _FREED)
        return slots_desk, desk

    for me in range(len(orders)):
        scene.thread(f"vCPU {me}", vcpu, *small.vcpu_words(me), me)
    scene.thread("updater", updater, *small.updater_words())

    def sound(view: View) -> None:
        small.are_sound(*view.result("updater"), *(view.result(f"vCPU {me}") for me in range(len(orders))))

    small.finals()
    scene.final("slots and tables are sound", sound)


def protect(scene: Scene) -> None:
    """A vCPU reads, then writes, while ``atomic`` makes the slot read-only; what is copied then stays."""
    memory = scene.host("memory", [0])
    small = SmallEngine(scene, [(0, _GFN, 1, memory)])
    atomics, apply = small.atomics, scene.room("designs.atomic").apply
    changes = [small.change(0), small.change(0, _GFN, 1, memory, _READONLY)]

    def reach(desk: Own, tlb: Own, own: Own, kind: int) -> bool:
        while not small.reaches(tlb, _GFN << 12, kind):
            came = small.exit(desk, tlb, own, (_GFN, kind, False))
            if came != AGAIN:
                assert (came, kind) == (_MET_READONLY, _WRITE), f"an access came to {came}"
                return False
        return True

    def vcpu(desk: Own, tlb: Own, own: Own) -> tuple[Own, int]:
        small.enter(tlb, own)
        if reach(desk, tlb, own, _READ):
            atomics.host_load(small.host(tlb))
        small.look(tlb, own)
        writes = reach(desk, tlb, own, _WRITE)
        if writes:
            atomics.host_fetch_add(small.host(tlb), 1)
        small.leave(tlb, own)
        return desk, int(writes)

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own, int]:
        apply(small.of(slots_desk, ranges, took, desk), changes)
        return slots_desk, desk, int(atomics.host_load(memory))

    scene.thread("vCPU", vcpu, *small.vcpu_words())
    scene.thread("updater", updater, *small.updater_words())

    def sound(view: View) -> None:
        small.are_sound(*view.result("updater")[:2], view.result("vCPU")[0])

    scene.final("no write came after the batch", lambda view: view.result("updater")[2] == view.word("memory", 0))
    scene.final("no write was lost", lambda view: view.result("vCPU")[1] == view.word("memory", 0))
    small.finals()
    scene.final("slots and tables are sound", sound)


def _show(engine: Any, changes: Sequence[Any]) -> None:
    """The overlays of ``designs.overlay``, which stay, and no slots behind them."""
    with engine.update() as update:
        for change in changes:
            if not change.deletes:
                update.overlay(change.base_gfn, change.userspace_addr)
        update._above = 0  # noqa: SLF001 - so that leaving the update does not take them away


def _model(
    name: str,
    design: str,
    orders: Sequence[Sequence[int]],
    *,
    exits: int = 0,
    phases: bool = False,
    **options: Any,
) -> Model:
    pages, accesses = 1 + max(map(max, orders)), len(orders[0])
    vcpus = "1 vCPU" if len(orders) == 1 else f"{len(orders)} vCPUs"
    size = f"{vcpus}, {pages} page{'s' * (pages > 1)}, {accesses} access{'es' * (accesses > 1)} each, 1 core; {_TABLE}"
    size += f", at most {exits} exits" * bool(exits) + ", by phases" * phases
    body = partial(build, design=design, orders=orders, atomic=design != "batch", exits=exits, phases=phases)
    return Model(name, _PROVES, size, body, geometry=SMALL, buffer=2, steps=4000, dpor=False, **options)


_TABLE = "SoftEngine, 8 table pages of 8 entries"
_PROVES = "on the path that production takes, no access meets a hole, or the old memory once the batch is over"
MODELS = (
    _model("production-pause", "pause", [[0]]),
    _model("production-batch", "batch", [[0]]),
    _model("production-atomic", "atomic", [[0]]),
    _model("production-atomic-phases", "atomic", [[0]], phases=True),
    _model("production-overlay", "overlay", [[0]], exits=2),
    _model("production-overlays", "overlays", [[0]], exits=2),
    _model("production-atomic-second", "atomic", [[1]]),
    _model("production-atomic-again", "atomic", [[0, 0]]),
    _model("production-atomic-pages", "atomic", [[0, 1]], exhaustive=False),
    _model("production-atomic-vcpus", "atomic", [[0], [0]], exhaustive=False),
    Model(
        "production-readonly",
        "no write comes after a batch that took the right to write, and none is lost",
        f"1 vCPU, a read and a write, 1 core, a batch that makes a slot read-only; {_TABLE}",
        protect,
        geometry=SMALL,
        buffer=2,
        steps=4000,
        dpor=False,
    ),
    _model("production-sequential", "sequential", [[0]], finds="assertion"),
    _model("production-unacknowledged", "atomic_unacknowledged", [[0]], finds="assertion"),
    _model("production-unacknowledged-phases", "atomic_unacknowledged", [[0]], phases=True, finds="assertion"),
)
