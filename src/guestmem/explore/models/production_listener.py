"""A device's map beside the slots, on the path that production takes: ``SoftUpdate`` with a listener.

One thread is vCPU and device in turn, so that what it saw first must be so for what it sees next. The device goes by a
table of one entry, under a lock, as vhost's worker does; the listener takes the lock, writes the table, gives it back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_engine import AGAIN, SmallEngine
from ..small_vm import SMALL

if TYPE_CHECKING:
    from ...compiled import Own

__all__ = ["MODELS"]

_GFN, _OLD, _NEW = 16, 1, 2
_HOLE, _MET_HOLE, _READ = 0, 2, 0


def build(scene: Scene, comes: bool, device_first: bool) -> None:
    """One frame ``comes``, or gets other memory; ``device_first``: the device looks, then the vCPU."""
    old, new = scene.host("old page", [_OLD]), scene.host("new page", [_NEW])
    before = _HOLE if comes else _OLD
    small = SmallEngine(scene, [] if comes else [(0, _GFN, 1, old)])
    atomics, change, apply = small.atomics, small.change, scene.room("designs.atomic").apply
    device = scene.words("device", [0, before], lambda i: ("lock", "what its table shows")[i])
    listeners = scene.room("engines.listeners")
    changes = [change(0)] * (not comes) + [change(0, _GFN, 1, new)]

    class Device(listeners.MapListener):  # type: ignore[misc, name-defined] # the twin's
        def stall(self, effects: Any) -> None:
            assert len(effects) == 1
            scene.lock(device, 0)

        def commit(self, effects: Any) -> None:
            assert effects[0].new is not None
            atomics.store_relaxed(device, 1, _NEW)

        def resume(self) -> None:
            scene.unlock(device, 0)

    def by_vcpu(desk: Own, tlb: Own, own: Own) -> int:
        small.enter(tlb, own)
        saw = None
        while not small.reaches(tlb, _GFN << 12, _READ):
            came = small.exit(desk, tlb, own, (_GFN, _READ, False))
            if came != AGAIN:
                assert came == _MET_HOLE, f"an access came to {came}"
                saw = _HOLE
                break
        if saw is None:
            saw = int(atomics.host_load(small.host(tlb)))
        small.leave(tlb, own)
        return saw

    def by_device() -> int:
        scene.lock(device, 0)
        saw = int(atomics.load_relaxed(device, 1))
        scene.unlock(device, 0)
        return saw

    def observer(desk: Own, tlb: Own, own: Own) -> Own:
        if device_first:
            first, second = by_device(), by_vcpu(desk, tlb, own)
        else:
            first, second = by_vcpu(desk, tlb, own), by_device()
        assert {first, second} <= {before, _NEW}, f"saw {first}, then {second}"
        assert first == before or second == _NEW, "the old was seen after the new"
        return desk

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        engine = small.of(slots_desk, ranges, took, desk)
        engine.listeners = [listeners.Attached(Device())]
        apply(engine, changes)
        return slots_desk, desk

    scene.thread("vCPU and device", observer, *small.vcpu_words())
    scene.thread("updater", updater, *small.updater_words())
    small.finals()
    scene.final("the device goes on", lambda view: view.word("device", 0) == 0)
    scene.final(
        "slots and tables are sound",
        lambda view: small.are_sound(*view.result("updater"), view.result("vCPU and device")),
    )


def _model(name: str, comes: bool, device_first: bool) -> Model:
    return Model(
        f"production-listener-{name}",
        "on the path that production takes, a vCPU and a device with a map of its own see an update at one instant",
        f"SoftEngine, 8 table pages of 8 entries, 1 vCPU and a device, 1 core; memory "
        f"{'comes' if comes else 'is exchanged'}, an access each, {'device' if device_first else 'vCPU'} first",
        partial(build, comes=comes, device_first=device_first),
        geometry=SMALL,
        buffer=2,
        stale=comes,
        steps=4000,
        dpor=False,
    )


MODELS = (
    _model("comes", True, False),
    _model("comes-device", True, True),
    _model("exchanged", False, False),
    _model("exchanged-device", False, True),
)
