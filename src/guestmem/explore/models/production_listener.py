"""A device's map beside the slots, on the path that production takes: ``SoftUpdate`` with a listener.

One thread is vCPU and device in turn, so that what it saw first must be so for what it sees next. The device goes by a
table of one entry, under a lock, as vhost's worker does; the listener takes the lock, writes the table, gives it back.
"""

from __future__ import annotations

import copy
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_vm import SMALL, memslots_label, srcu_label, vm_label
from ..telling import table_words, tlb_changes

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_GFN, _OLD, _NEW = 16, 1, 2
_HOLE, _AGAIN, _MET_HOLE, _READ = 0, 1, 2, 0


def build(scene: Scene, comes: bool, device_first: bool) -> None:
    """One frame ``comes``, or gets other memory; ``device_first``: the device looks, then the vCPU."""
    old, new = scene.host("old page", [_OLD]), scene.host("new page", [_NEW])
    at, atomics = scene.room("engines.soft.layout"), scene.room("atomics")
    engine = scene.room("engines.soft.engine").SoftEngine(1, cores=1)
    change = scene.room("memslots.changes").Change
    before = _HOLE if comes else _OLD
    if not comes:
        engine.set_memory_region(change(0, _GFN, 1, old))
    memslots, stage2 = engine.memslots, engine.stage2
    shape_of, table = memslots.geometry, stage2.tables[0]
    vm = scene.words("vm", engine._vm, vm_label(scene))  # noqa: SLF001 - the model is of its words
    load = scene.words("load", engine._load)  # noqa: SLF001 - as above
    srcu = scene.words("srcu", memslots.srcu.words, srcu_label)
    slots = scene.words("memslots", memslots.words, memslots_label(scene, shape_of.first_record, shape_of.first_node))
    scene.words("table", stage2.pool.words, table_words(stage2.tables[0], stage2.pool))
    scene.words("page", stage2.pool.pages)
    scene.words("mmu", table.mmu)
    device = scene.words("device", [0, before], lambda i: ("lock", "what its table shows")[i])
    for desk in table.desks:
        scene.room("stage2.free_list").cache_topup(*table.words[:3], desk, 2)
    stage2_vcpu, vcpu_code = scene.room("engines.soft.stage2_vcpu"), scene.room("engines.soft.vcpu")
    no_file = scene.room("engines.soft.gmem_slot").Gmem(*engine.file_words(0))
    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    lookup, apply = scene.room("memslots.lookup"), scene.room("designs.atomic").apply
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
        assert vcpu_code.enter_guest(vm, load, own, 0), "the VM does not stop"
        walk.tlb_enter(*table.words[:2], table.mmu, tlb)
        gpa, saw = _GFN << 12, None
        while walk.tlb_translate(*table.words[:2], table.mmu, tlb, gpa, gpa, 1 << _READ) != 0:
            came = stage2_vcpu.stage2_exit(
                *(stage2_vcpu.Slots(vm, slots, srcu, own), load, stage2_vcpu.Table(*table.words, desk), tlb, no_file),
                *(0, stage2_vcpu.Access(_GFN, _READ, False, False, False, 0), False),
            )
            if came != _AGAIN:
                assert came == _MET_HOLE, f"an access came to {came}"
                saw = _HOLE
                break
        if saw is None:
            saw = int(atomics.host_load(tlb[address]))
        walk.tlb_leave(table.mmu, tlb)
        vcpu_code.leave_core(vm, own, 0, False)
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
        engine_, memslots_, stage2_, table_ = (copy.copy(each) for each in (engine, memslots, stage2, table))
        memslots_.desk, memslots_.slots_lock, memslots_._spare = slots_desk, threading.Lock(), []  # noqa: SLF001
        for name in ("copy_find", "copy_by_id", "copy_slots"):
            setattr(memslots_, f"_{name}", getattr(lookup, name))
        table_.desks = [desk, *table.desks[1:]]
        stage2_.tables = [table_]
        engine_.memslots, engine_.stage2, engine_.counts = memslots_, stage2_, copy.copy(engine.counts)
        engine_._ranges, engine_._took = ranges, took  # noqa: SLF001 - fresh state
        engine_._spare, engine_._holding = [], threading.Lock()  # noqa: SLF001 - as above
        engine_.dirty = copy.copy(engine.dirty)
        engine_.dirty._memslots, engine_.dirty._stage2 = memslots_, stage2_  # noqa: SLF001 - as above
        engine_.listeners = [listeners.Attached(Device())]
        apply(engine_, changes)
        return slots_desk, desk

    own, base = engine._own[0], int(at.VCPUS)  # noqa: SLF001 - as above
    vm.cells[base + int(at.DONE)] = own[int(at.ACKED)] = vm.cells[base + int(at.REQUESTED)]
    own[int(at.LOADED)] = vm.cells[int(at.LOAD)]
    scene.tell(stage2.tlbs[0][0].words, tlb_changes(table.format.geometry.shift))
    scene.thread("vCPU and device", observer, table.desks[1], stage2.tlbs[0][0].words, own)
    scene.thread("updater", updater, memslots.desk, engine._ranges, engine._took, table.desks[0])  # noqa: SLF001

    def sound(view: View) -> None:
        memslots.desk = view.result("updater")[0]
        memslots.check()

    scene.final("nothing is left in flux", lambda view: view.word("vm", int(at.FLUX)) & 255 == 0)
    scene.final("the device goes on", lambda view: view.word("device", 0) == 0)
    scene.final("slots are sound", sound)


def _model(name: str, comes: bool, device_first: bool) -> Model:
    return Model(
        f"production-listener-{name}",
        "on the path that production takes, a vCPU and a device with a map of its own see an update at one instant",
        f"SoftEngine, 8 table pages of 8 entries, 1 vCPU and a device, 1 core; memory "
        f"{'comes' if comes else 'is exchanged'}, an access each, {'device' if device_first else 'vCPU'} first",
        partial(build, comes=comes, device_first=device_first),
        geometry=SMALL,
        buffer=2,
        steps=4000,
        dpor=False,
    )


MODELS = (
    _model("comes", True, False),
    _model("comes-device", True, True),
    _model("exchanged", False, False),
    _model("exchanged-device", False, True),
)
