"""Both address spaces changed with one instant, on the path that production takes: ``SpacesUpdate`` and a vCPU's exits.

One frame of each space. A vCPU accesses that of space 0, goes to space 1 (as into SMM) and accesses that one: what it
saw done there must be done here. Space 1, where memory comes, is published last, so that its frame does not wait: all
rests on what space 0 shows before the second store.
"""

from __future__ import annotations

import copy
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_vm import SMALL, memslots_label, srcu_label, vm_label
from ..telling import table_words, tlb_changes
from ..twin import Mutation

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_TABLES = "engines/soft/stage2.py"
_SIZES = (
    Mutation(_TABLES, "TABLE_PAGES = 1 << 14", "TABLE_PAGES = 16"),
    *(each for each in SMALL if each.new != "TABLE_PAGES = 8"),
)
_GFN, _OLD, _NEW, _FREED = 16, 1, 2, 99
_HOLE, _READONLY = 0, 3
_AGAIN, _MET_HOLE, _MET_READONLY = 1, 2, 3
_READ, _WRITE = 0, 1
KINDS = {
    "comes": (_HOLE, _NEW, _READ),
    "goes": (_OLD, _HOLE, _READ),
    "writable": (_READONLY, _OLD, _WRITE),
    "readonly": (_OLD, _READONLY, _WRITE),
}
"""What happens to the frame of space 0: what an access sees before, and after, and whether it reads or writes."""

WHAT = {
    "comes": "memory comes",
    "goes": "memory goes",
    "writable": "read-only memory becomes writable",
    "readonly": "memory becomes read-only",
}


def build(scene: Scene, kind: str) -> None:
    """The frame of space 0 ``kind``; that of space 1 comes."""
    before, after, access_kind = KINDS[kind]
    old, new = scene.host("old page", [_OLD]), scene.host("new page", [_NEW])
    at, atomics = scene.room("engines.soft.layout"), scene.room("atomics")
    engine = scene.room("engines.soft.engine").SoftEngine(1, cores=1, address_spaces=2)
    change = scene.room("memslots.changes").Change
    if kind != "comes":
        engine.set_memory_region(change(0, _GFN, 1, old, 2 * (kind == "writable")))
    memslots, stage2 = engine.memslots, engine.stage2
    memslots.desks.append(scene.room("compiled").own(memslots.geometry.desk_words))
    shape_of = memslots.geometry
    vm = scene.words("vm", engine._vm, vm_label(scene))  # noqa: SLF001 - the model is of its words
    load = scene.words("load", engine._load)  # noqa: SLF001 - as above
    srcu = scene.words("srcu", memslots.srcu.words, srcu_label)
    slots = scene.words("memslots", memslots.words, memslots_label(scene, shape_of.first_record, shape_of.first_node))
    scene.words("table", stage2.pool.words, table_words(stage2.tables[0], stage2.pool))
    scene.words("page", stage2.pool.pages)
    for as_id, table in enumerate(stage2.tables):
        scene.words(f"mmu {as_id}", table.mmu)
        for desk in table.desks:
            scene.room("stage2.free_list").cache_topup(*table.words[:3], desk, 2)
    stage2_vcpu, vcpu_code = scene.room("engines.soft.stage2_vcpu"), scene.room("engines.soft.vcpu")
    no_file = scene.room("engines.soft.gmem_slot").Gmem(*engine.file_words(0))
    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    lookup, apply = scene.room("memslots.lookup"), scene.room("designs.atomic").apply
    changes = {
        "comes": [change(0, _GFN, 1, new)],
        "goes": [change(0)],
        "writable": [change(0), change(0, _GFN, 1, old)],
        "readonly": [change(0), change(0, _GFN, 1, old, 2)],
    }[kind]
    changes.append(change(1, _GFN + 1, 1, new, 0, 1))  # another frame: in flux, one waits in both spaces

    def access(as_id: int, desk: Own, tlb: Own, own: Own) -> int:
        """What an access to the frame of a space finds; as ``stage2_access``, after ``VcpuThreads._run``."""
        kind, gfn, table = (_READ if as_id else access_kind), _GFN + as_id, stage2.tables[as_id]
        gpa = gfn << 12
        own[int(at.AS_ID)] = as_id
        assert vcpu_code.enter_guest(vm, load, own, 0), "the VM does not stop"
        walk.tlb_enter(*table.words[:2], table.mmu, tlb)
        saw = came = 0
        while walk.tlb_translate(*table.words[:2], table.mmu, tlb, gpa, gpa, 1 << kind) != 0:
            came = stage2_vcpu.stage2_exit(
                *(stage2_vcpu.Slots(vm, slots, srcu, own), load, stage2_vcpu.Table(*table.words, desk), tlb, no_file),
                *(0, stage2_vcpu.Access(gfn, kind, False, False, False, 0), False),
            )
            if came != _AGAIN:
                saw = {_MET_HOLE: _HOLE, _MET_READONLY: _READONLY}[came]
                break
        else:
            saw = int(atomics.host_load(tlb[address]))
        walk.tlb_leave(table.mmu, tlb)
        vcpu_code.leave_core(vm, own, 0, False)
        return saw

    def vcpu(desk0: Own, tlb0: Own, desk1: Own, tlb1: Own, own: Own) -> tuple[Own, Own]:
        first = access(0, desk0, tlb0, own)
        assert first in {before, after}, f"an access of space 0 saw {first}"
        second = access(1, desk1, tlb1, own)
        assert second in {_HOLE, _NEW}, f"an access of space 1 saw {second}"
        assert first == before or second == _NEW, "an access of space 1 saw the old after one of space 0 saw the new"
        return desk0, desk1

    def updater(first: Own, second: Own, ranges: Own, took: Own, desk0: Own, desk1: Own) -> tuple[Own, ...]:
        engine_, memslots_, stage2_ = (copy.copy(each) for each in (engine, memslots, stage2))
        memslots_.desk, memslots_.desks, memslots_._spare = first, [first, second], []  # noqa: SLF001 - fresh state
        memslots_.slots_lock = threading.Lock()
        for name in ("copy_find", "copy_by_id", "copy_slots"):
            setattr(memslots_, f"_{name}", getattr(lookup, name))
        stage2_.tables = [copy.copy(table) for table in stage2.tables]
        for table, desk in zip(stage2_.tables, (desk0, desk1), strict=True):
            table.desks = [desk, *table.desks[1:]]
        engine_.memslots, engine_.stage2, engine_.counts = memslots_, stage2_, copy.copy(engine.counts)
        engine_._ranges, engine_._took = ranges, took  # noqa: SLF001 - fresh state
        engine_._spare, engine_._holding = [], threading.Lock()  # noqa: SLF001 - as above
        engine_.dirty = copy.copy(engine.dirty)
        engine_.dirty._memslots, engine_.dirty._stage2 = memslots_, stage2_  # noqa: SLF001 - as above
        apply(engine_, changes)
        if kind == "goes":
            atomics.host_store(old, _FREED)
        return memslots_.desk, desk0, desk1

    own, base = engine._own[0], int(at.VCPUS)  # noqa: SLF001 - as above
    vm.cells[base + int(at.DONE)] = own[int(at.ACKED)] = vm.cells[base + int(at.REQUESTED)]
    own[int(at.LOADED)] = vm.cells[int(at.LOAD)]
    walkers = [each for as_id in range(2) for each in (stage2.tables[as_id].desks[1], stage2.tlbs[as_id][0].words)]
    for as_id in range(2):
        scene.tell(stage2.tlbs[as_id][0].words, tlb_changes(stage2.tables[as_id].format.geometry.shift))
    scene.thread("vCPU", vcpu, *walkers, own)
    scene.thread(
        "updater",
        updater,
        *memslots.desks,
        engine._ranges,  # noqa: SLF001 - as above
        engine._took,  # noqa: SLF001 - as above
        *(table.desks[0] for table in stage2.tables),
    )

    def sound(view: View) -> None:
        memslots.desk, *desks = view.result("updater")
        memslots.check()
        before = [table.desks for table in stage2.tables]
        for table, *walkers in zip(stage2.tables, desks, view.result("vCPU"), strict=True):
            table.desks = walkers
        try:
            for table in stage2.tables:
                table.check()
        finally:
            for table, walkers in zip(stage2.tables, before, strict=True):
                table.desks = walkers

    scene.final("nothing is left in flux", lambda view: view.word("vm", int(at.FLUX)) & 255 == 0)
    scene.final("nobody is left in a section", lambda _view: engine.srcu.check() or not engine.srcu.inside())
    scene.final("slots and tables are sound", sound)


def _model(kind: str, **options: Any) -> Model:
    return Model(
        f"production-spaces-{kind}",
        "on the path that production takes, changes of two address spaces have one instant",
        f"SoftEngine, 16 table pages of 8 entries, 1 vCPU that changes its space, 1 core; {WHAT[kind]} in "
        "the first space, memory comes in the second; an access each",
        partial(build, kind=kind),
        geometry=_SIZES,
        buffer=2,
        steps=4000,
        dpor=False,
        **options,
    )


MODELS = tuple(_model(kind) for kind in KINDS)
