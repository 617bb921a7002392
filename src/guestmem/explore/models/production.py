"""Designs on the path that production takes: ``SoftEngine(stage2=True)``, a vCPU that exits and faults, and ``apply``.

Engine, slots, SRCU, requests, flux, core tokens, stage-2 table, zaps, TLB, walks and faults are those that run; only
sizes are cut: 8 table pages of 8 entries, a TLB of 2 + 2 + 2 entries, 2 slots. A slot of one frame gets other host
memory; the vCPU reads it once (enter, walk, exit, fault, look, walk again), and the old page is freed when ``apply``
has returned.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_vm import SMALL, memslots_label, srcu_label, vm_label
from ..telling import table_words, tlb_changes
from ..twin import Mutation

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["GEOMETRY", "MODELS"]

_TABLES = "engines/soft/stage2.py"
GEOMETRY = (
    *SMALL,
    Mutation(_TABLES, "TABLE_PAGES = 1 << 14", "TABLE_PAGES = 8"),
    Mutation(
        _TABLES,
        "from ...stage2.arm import arm_stage2\n",
        "from ...stage2.arm import ArmFormat, arm_stage2\nfrom ...stage2.format import Annotations\n"
        "from ...stage2.geometry import Geometry\n",
    ),
    Mutation(
        _TABLES,
        'amd_npt() if arch == "x86" else arm_stage2(0x1000, 48)',
        'ArmFormat(Geometry(12, 3, 2, 18), 48, Annotations("7.1"))',
    ),
    Mutation(_TABLES, "Pool(TABLE_PAGES)", "Pool(TABLE_PAGES, base=0x1000_0000)"),
    Mutation(
        _TABLES,
        "walkers=1 + vcpus, discipline=discipline)",
        "walkers=1 + vcpus, discipline=discipline, cache=2, queue=16)",
    ),
    Mutation(_TABLES, "identity=True, bbm=bbm)", "identity=True, bbm=bbm, combined=2, leaves=2, walks=2)"),
    Mutation(_TABLES, ' | (_NPT_DIRTY if arch == "x86" else 0)', ""),
    Mutation(_TABLES, "self.block_level = huge", "self.block_level = 3"),
)
"""Sizes, and a pool of pretended addresses. No mutants."""

_GFN, _OLD, _NEW, _FREED = 16, 1, 2, 99
_READ, _READ_NEED = 0, 1
_AGAIN = 1


def build(scene: Scene, design: str, orders: Sequence[Sequence[int]], *, atomic: bool = True, exits: int = 0) -> None:
    """VCPU k reads the frames ``orders[k]``, in that order, while ``design`` gives all of them other memory.

    ``overlays``: ``overlay`` without the slots. ``exits``: of an access, after which it is given up. ``atomic``: nobody
    sees the old memory after somebody saw the new.
    """
    frames = 1 + max(map(max, orders))
    old = [scene.host(f"old page {frame}", [_OLD]) for frame in range(frames)]
    new = [scene.host(f"new page {frame}", [_NEW]) for frame in range(frames)]
    at, atomics = scene.room("engines.soft.layout"), scene.room("atomics")
    engine = scene.room("engines.soft.engine").SoftEngine(len(orders), cores=1)
    change = scene.room("memslots.changes").Change
    for frame in range(frames):
        engine.set_memory_region(change(frame, _GFN + frame, 1, old[frame], 0))
    memslots, stage2 = engine.memslots, engine.stage2
    shape_of, table = memslots.geometry, stage2.tables[0]
    vm = scene.words("vm", engine._vm, vm_label(scene))  # noqa: SLF001 - the model is of its words
    load = scene.words("load", engine._load)  # noqa: SLF001 - as above
    srcu = scene.words("srcu", memslots.srcu.words, srcu_label)
    slots = scene.words("memslots", memslots.words, memslots_label(scene, shape_of.first_record, shape_of.first_node))
    told = scene.words("told", 1, lambda _: "somebody saw the new memory") if len(orders) > 1 else None
    scene.words("table", stage2.pool.words, table_words(stage2.tables[0], stage2.pool))
    scene.words("page", stage2.pool.pages)
    scene.words("mmu", table.mmu)
    for desk in table.desks:
        scene.room("stage2.free_list").cache_topup(*table.words[:3], desk, 2)
    stage2_vcpu, vcpu_code = scene.room("engines.soft.stage2_vcpu"), scene.room("engines.soft.vcpu")
    no_file = scene.room("engines.soft.gmem_slot").Gmem(*engine.file_words(0))
    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    requests, cores = scene.room("engines.soft.requests"), scene.room("engines.soft.cores")
    lookup = scene.room("memslots.lookup")
    apply = _show if design == "overlays" else scene.room(f"designs.{design}").apply
    changes = [
        *(change(frame) for frame in range(frames)),
        *(change(frame, _GFN + frame, 1, new[frame]) for frame in range(frames)),
    ]
    shape, pool, _, mmu = table.words

    def access(desk: Own, tlb: Own, own: Own, me: int, frame: int) -> int:
        """What an access finds; as ``stage2_vcpu.stage2_access``, which counts and does not say."""
        gpa, left = (_GFN + frame) << 12, exits
        while walk.tlb_translate(shape, pool, mmu, tlb, gpa, gpa, _READ_NEED) != 0:
            if exits and not left:
                return 0  # each retry is counted, so without a bound there would be no end of states
            left -= 1
            came = stage2_vcpu.stage2_exit(
                *(stage2_vcpu.Slots(vm, slots, srcu, own), load, stage2_vcpu.Table(*table.words, desk), tlb, no_file),
                *(me, stage2_vcpu.Access(_GFN + frame, _READ, False, True, False, 0), False),
            )
            assert came == _AGAIN, f"frame {frame} has memory before and after, but an access came to {came}"
        return int(atomics.host_load(tlb[address]))

    def vcpu(desk: Own, tlb: Own, own: Own, me: int) -> Own:
        assert vcpu_code.enter_guest(vm, load, own, me), "the VM does not stop"
        walk.tlb_enter(shape, pool, mmu, tlb)
        newest = 0
        for turn, frame in enumerate(orders[me]):
            if turn:
                assert stage2_vcpu.stage2_look(vm, load, own, shape, pool, mmu, tlb, me), "the VM does not stop"
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
        walk.tlb_leave(mmu, tlb)
        requests.leave_guest(vm, me, at.OUTSIDE)
        cores.give_core(vm)
        return desk

    def mine(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> Any:
        """The engine as this run of the thread finds it."""
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
        return engine_

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        apply(mine(slots_desk, ranges, took, desk), changes)
        for page in old:
            atomics.host_store(page, _FREED)
        return slots_desk, desk

    for me in range(len(orders)):
        own, base = engine._own[me], int(at.VCPUS) + int(at.VCPU) * me  # noqa: SLF001 - as above
        vm.cells[base + int(at.DONE)] = own[int(at.ACKED)] = vm.cells[base + int(at.REQUESTED)]
        own[int(at.LOADED)] = vm.cells[int(at.LOAD)]
        scene.tell(stage2.tlbs[0][me].words, tlb_changes(table.format.geometry.shift))
        scene.thread(f"vCPU {me}", vcpu, table.desks[1 + me], stage2.tlbs[0][me].words, own, me)
    scene.thread("updater", updater, memslots.desk, engine._ranges, engine._took, table.desks[0])  # noqa: SLF001

    def sound(view: View) -> None:
        memslots.desk, desk = view.result("updater")
        memslots.check()
        before = table.desks
        table.desks = [desk, *(view.result(f"vCPU {me}") for me in range(len(orders)))]
        try:
            table.check()
        finally:
            table.desks = before

    scene.final("nothing is left in flux", lambda view: view.word("vm", int(at.FLUX)) & 255 == 0)
    scene.final("nobody is left in a section", lambda _view: engine.srcu.check() or not engine.srcu.inside())
    scene.final(
        "every core token was given back",
        lambda view: view.word("vm", int(at.NEXT_TICKET)) == view.word("vm", int(at.SERVING)),
    )
    scene.final("slots and tables are sound", sound)


def _show(engine: Any, changes: Sequence[Any]) -> None:
    """The overlays of ``designs.overlay``, which stay, and no slots behind them."""
    with engine.update() as update:
        for change in changes:
            if not change.deletes:
                update.overlay(change.base_gfn, change.userspace_addr)
        update._above = 0  # noqa: SLF001 - so that leaving the update does not take them away


def _model(name: str, design: str, orders: Sequence[Sequence[int]], *, exits: int = 0, **options: Any) -> Model:
    pages, accesses = 1 + max(map(max, orders)), len(orders[0])
    vcpus = "1 vCPU" if len(orders) == 1 else f"{len(orders)} vCPUs"
    size = f"{vcpus}, {pages} page{'s' * (pages > 1)}, {accesses} access{'es' * (accesses > 1)} each, 1 core; {_TABLE}"
    size += f", at most {exits} exits" * bool(exits)
    body = partial(build, design=design, orders=orders, atomic=design != "batch", exits=exits)
    return Model(name, _PROVES, size, body, geometry=GEOMETRY, buffer=2, steps=4000, dpor=False, **options)


_TABLE = "SoftEngine(stage2=True), 8 table pages of 8 entries"
_PROVES = "on the path that production takes, no access meets a hole, or the old memory once the batch is over"
MODELS = (
    _model("production-pause", "pause", [[0]]),
    _model("production-batch", "batch", [[0]]),
    _model("production-atomic", "atomic", [[0]]),
    _model("production-overlay", "overlay", [[0]], exits=2),
    _model("production-overlays", "overlays", [[0]], exits=2),
    _model("production-atomic-again", "atomic", [[0, 0]]),
    _model("production-atomic-pages", "atomic", [[0, 1]], exhaustive=False),
    _model("production-atomic-vcpus", "atomic", [[0], [0]], exhaustive=False),
    _model("production-sequential", "sequential", [[0]], finds="assertion"),
    _model("production-unacknowledged", "atomic_unacknowledged", [[0]], finds="assertion"),
)
