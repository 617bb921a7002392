"""Another load for vCPUs that run: who gives it waits for those in the guest, and those in the host look as they enter.

The exit is production's (``stage2_exit``), on ``SoftEngine(stage2=True)`` as ``production`` cuts it down. An access of
the load before must not come after the new one was given, for its memory may be another's by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..small_vm import memslots_label, srcu_label, vm_label
from .production import GEOMETRY

if TYPE_CHECKING:
    from ...compiled import Own

__all__ = ["MODELS"]

_GFN, _MINE, _FREED = 16, 1, 99
_READ, _READ_NEED, _AGAIN = 0, 1, 1


def build(scene: Scene) -> None:
    """A vCPU reads a page, by way of a fault, while it is given another load and the page goes to somebody else."""
    page = scene.host("memory", [_MINE])
    at, atomics = scene.room("engines.soft.layout"), scene.room("atomics")
    engine = scene.room("engines.soft.engine").SoftEngine(1, cores=1)
    engine.set_memory_region(scene.room("memslots.changes").Change(0, _GFN, 1, page, 0))
    memslots, stage2 = engine.memslots, engine.stage2
    table, shape_of = stage2.tables[0], memslots.geometry
    vm = scene.words("vm", engine._vm, vm_label(scene))  # noqa: SLF001 - the model is of its words
    load = scene.words("load", engine._load)  # noqa: SLF001 - as above
    srcu = scene.words("srcu", memslots.srcu.words, srcu_label)
    slots = scene.words("memslots", memslots.words, memslots_label(scene, shape_of.first_record, shape_of.first_node))
    scene.words("table", stage2.pool.words)
    scene.words("page", stage2.pool.pages)
    scene.words("mmu", table.mmu)
    desk = table.desks[1]
    scene.room("stage2.free_list").cache_topup(*table.words[:3], desk, 2)
    stage2_vcpu, vcpu_code = scene.room("engines.soft.stage2_vcpu"), scene.room("engines.soft.vcpu")
    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    requests, cores = scene.room("engines.soft.requests"), scene.room("engines.soft.cores")
    shape, pool, _, mmu = table.words
    no_file = scene.room("engines.soft.gmem_slot").Gmem(*engine.file_words(0))

    def vcpu(desk: Own, tlb: Own, own: Own) -> int:
        assert vcpu_code.enter_guest(vm, load, own, 0), "the VM does not stop"
        walk.tlb_enter(shape, pool, mmu, tlb)
        gpa, saw = _GFN << 12, 0
        while own[at.LOADED] == 0:  # else the access is not made
            if walk.tlb_translate(shape, pool, mmu, tlb, gpa, gpa, _READ_NEED) == 0:
                saw = int(atomics.host_load(tlb[address]))
                assert saw != _FREED, "an access of the load before came after the new one was given"
                break
            came = stage2_vcpu.stage2_exit(
                *(stage2_vcpu.Slots(vm, slots, srcu, own), load, stage2_vcpu.Table(*table.words, desk), tlb, no_file),
                *(0, stage2_vcpu.Access(_GFN, _READ, False, True, False, 0), False),
            )
            assert came == _AGAIN, f"the access came to {came}"
        walk.tlb_leave(mmu, tlb)
        requests.leave_guest(vm, 0, at.OUTSIDE)
        cores.give_core(vm)
        return saw

    def giver(targets: Own) -> None:
        atomics.store_release(vm, at.LOAD, 1)
        requests.request_all(vm, 1, targets)
        requests.wait_for_acknowledgements(vm, 1, targets)
        atomics.host_store(page, _FREED)

    own, base = engine._own[0], int(at.VCPUS)  # noqa: SLF001 - as above
    vm.cells[base + int(at.DONE)] = own[int(at.ACKED)] = vm.cells[base + int(at.REQUESTED)]
    own[int(at.LOADED)] = vm.cells[int(at.LOAD)]
    scene.thread("vCPU", vcpu, desk, stage2.tlbs[0][0].words, own)
    scene.thread("giver", giver, scene.own(1))
    scene.final("nobody waits any more", lambda view: view.word("vm", int(at.WAITING)) == 0)


MODELS = (
    Model(
        "load-change",
        "no access of one load is made once the next was given",
        "1 vCPU, 1 access by way of a fault, 1 new load, SoftEngine(stage2=True), 8 table pages of 8 entries",
        build,
        geometry=GEOMETRY,
        buffer=2,
        stale=True,
        steps=4000,
        dpor=False,
    ),
)
