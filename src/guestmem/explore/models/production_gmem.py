"""Slots with a guest_memfd on the path that production takes: a vCPU's exit and fault against conversion and rebinding.

``SoftEngine`` with a file of two pages: ``stage2_exit``, ``gmem_slot_fault``, TLB, walks, zaps, flux,
slots, SRCU, the file's lock and states, and the engine's own invalidation are those that run. Sizes are cut as in
``production``. In the first model the page is converted to private while a shared access reaches for it, and the guest
then writes what only it may see. In the second, ``atomic`` binds the frame to the file's other page while a private
access reaches for it; the first page is freed when that has returned. Which slot has bound what is left out there: only
conversions look at it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import GuestMemfdError
from ..scene import Model, Scene
from ..small_file import PAGE, SECRET, SMALL_FILE, SmallFile
from ..small_vm import SMALL, memslots_label, srcu_label, vm_label
from ..telling import table_words, tlb_changes
from ..twin import Mutation

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["CUT", "GFN", "MODELS", "SmallGmem"]

GFN, _FREED = 16, 99
_READ, _AGAIN, _MEMORY_FAULT = 0, 1, 5
_FILE_FLAG = 4
CUT = (
    *SMALL,
    *SMALL_FILE,
    Mutation("gmem/bindings.py", "RangeMap(capacity=1 << 16)", "RangeMap(capacity=4)"),
)
_NO_BINDINGS = (
    *CUT,
    Mutation(
        "engines/soft/update.py",
        "            self._bind(changes)\n            self.stage_slots",
        "            self.stage_slots",
    ),
)


class SmallGmem:
    """``vcpus`` vCPUs, and slot 0, which has the file's first page at frame ``GFN``.

    ``of_vm``: states are the VM's attributes, and the file has no MMAP: shared memory is the second page of ``small``.
    """

    FILE_FLAG = _FILE_FLAG

    def __init__(self, scene: Scene, vcpus: int = 1, *, of_vm: bool = False) -> None:
        self.scene, self.of_vm = scene, of_vm
        self.at, self.atomics = scene.room("engines.soft.layout"), scene.room("atomics")
        self.engine = engine = scene.room("engines.soft.engine").SoftEngine(vcpus, cores=1)
        self.small = SmallFile(scene, "vm-attributes" if of_vm else "attributes", pages=2)
        if of_vm:
            self.small.inode.flags = 0
        kind = scene.room("gmem.file").GuestMemfd
        self.file = object.__new__(kind)
        attributes = scene.room("gmem.vm_attributes").VmMemoryAttributes() if of_vm else None
        self.file._open(self.small.inode, None, attributes, None, 22, True)  # noqa: SLF001 - on an inode of the scene
        self.change = scene.room("memslots.changes").Change
        self.number = engine.files.add(self.file)
        engine.set_memory_region(self.bind(0))
        memslots, stage2 = engine.memslots, engine.stage2
        shape_of, self.table = memslots.geometry, stage2.tables[0]
        self.vm = scene.words("vm", engine._vm, vm_label(scene))  # noqa: SLF001 - the model is of its words
        self.load = scene.words("load", engine._load)  # noqa: SLF001 - as above
        self.srcu = scene.words("srcu", memslots.srcu.words, srcu_label)
        label = memslots_label(scene, shape_of.first_record, shape_of.first_node)
        self.slots = scene.words("memslots", memslots.words, label)
        self.words = engine.files.words(self.number)
        scene.words("file", self.words[0])
        scene.words("table", stage2.pool.words, table_words(stage2.tables[0], stage2.pool))
        scene.words("page", stage2.pool.pages)
        scene.words("mmu", self.table.mmu)
        for desk in self.table.desks:
            scene.room("stage2.free_list").cache_topup(*self.table.words[:3], desk, 2)
        self.private = stage2.private_gfn << 12

    def bind(self, page: int) -> Any:
        """The change that gives slot 0 a page of the file."""
        shared = self.small.memory + PAGE if self.of_vm else 0
        return self.change(0, GFN, 1, shared, _FILE_FLAG, 0, self.number, page * PAGE)

    def start_vcpu(self, *, private: bool, wrong: int) -> None:
        """A vCPU that reads the frame once, by a private or a shared access; what it may never see is ``wrong``."""
        scene, at, table = self.scene, self.at, self.table
        exits, code = scene.room("engines.soft.stage2_vcpu"), scene.room("engines.soft.vcpu")
        walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
        bundle = scene.room("engines.soft.gmem_slot").Gmem
        requests, cores = scene.room("engines.soft.requests"), scene.room("engines.soft.cores")
        shape, pool, _, mmu = table.words
        gpa = (GFN << 12) + (self.private if private else 0)
        vm, load = self.vm, self.load

        def vcpu(desk: Own, tlb: Own, own: Own, out: Own) -> Own:
            gmem = bundle(*self.words, out)
            assert code.enter_guest(vm, load, own, 0), "the VM does not stop"
            walk.tlb_enter(shape, pool, mmu, tlb)
            came = _AGAIN
            while came == _AGAIN and walk.tlb_translate(shape, pool, mmu, tlb, gpa, gpa, 1) != 0:
                came = exits.stage2_exit(
                    *(exits.Slots(vm, self.slots, self.srcu, own), load, exits.Table(*table.words, desk), tlb, gmem),
                    *(0, exits.Access(GFN, _READ, private, private, False, 0), False),
                )
                assert came in ({_AGAIN} if private else {_AGAIN, _MEMORY_FAULT}), f"an access came to {came}"
            if came == _AGAIN:
                saw = int(self.atomics.host_load(tlb[address]))
                assert saw != wrong, f"an access saw {'freed' if private else 'private'} memory"
            walk.tlb_leave(mmu, tlb)
            requests.leave_guest(vm, 0, at.OUTSIDE)
            cores.give_core(vm)
            return desk

        own, base = self.engine._own[0], int(at.VCPUS)  # noqa: SLF001 - as above
        vm.cells[base + int(at.DONE)] = own[int(at.ACKED)] = vm.cells[base + int(at.REQUESTED)]
        own[int(at.LOADED)] = vm.cells[int(at.LOAD)]
        own[int(at.FILE)] = self.number
        tlb = self.engine.stage2.tlbs[0][0].words
        scene.tell(tlb, tlb_changes(table.format.geometry.shift))
        scene.thread("vCPU", vcpu, table.desks[1], tlb, own, scene.own(3))

    def start_converter(self, *, page: int = 0, writes: int = 0, bound: bool = False) -> None:
        """A conversion of a page to private, after which the guest ``writes`` there, unless 0.

        ``bound``: what is invalidated is what slots have bound, as the file says; else slot 0, which has the page.
        """
        scene, small = self.scene, self.small
        slot = scene.room("memslots.slot").Slot(0, 0, GFN, 1, 0)

        def converter(desk: Own, states: Own, freed: Own, found: Own) -> tuple[bool, Own]:
            inode, files = small.of(states, freed, found), copy.copy(self.engine.files)
            files._stage2 = self.of(desk)  # noqa: SLF001 - fresh state

            @contextmanager
            def invalidation(_first: int, _last: int, kinds: str) -> Iterator[None]:
                with files._invalidation(slot, GFN, GFN + 1, kinds):  # noqa: SLF001 - what the file calls
                    yield

            if bound:
                file = copy.copy(self.file)
                file.inode, file.invalidate, inode.files = inode, files._invalidation, [file]  # noqa: SLF001 - as above
            else:
                inode.invalidation = invalidation
            try:
                inode.generation.convert(inode, page, page, private=True)
            except GuestMemfdError:
                return False, desk
            if writes:
                small.atomics.host_store(small.memory + page * PAGE, writes)
            return True, desk

        scene.thread("converter", converter, self.table.desks[0], *small.writers())

    def engine_of(self, slots_desk: Own, ranges: Own, took: Own, desk: Own) -> Any:
        """The engine as one run of an updater finds it."""
        engine, memslots = copy.copy(self.engine), copy.copy(self.engine.memslots)
        lookup = self.scene.room("memslots.lookup")
        memslots.desk, memslots.slots_lock, memslots._spare = slots_desk, threading.Lock(), []  # noqa: SLF001
        for name in ("copy_find", "copy_by_id", "copy_slots"):
            setattr(memslots, f"_{name}", getattr(lookup, name))
        engine.memslots, engine.stage2, engine.counts = memslots, self.of(desk), copy.copy(engine.counts)
        engine._ranges, engine._took = ranges, took  # noqa: SLF001 - fresh state
        engine._spare, engine._holding = [], threading.Lock()  # noqa: SLF001 - as above
        engine.dirty = copy.copy(engine.dirty)
        engine.dirty._memslots, engine.dirty._stage2 = memslots, engine.stage2  # noqa: SLF001 - as above
        return engine

    def of(self, desk: Own) -> Any:
        """Stage 2 as one run of an updater finds it."""
        stage2, table = copy.copy(self.engine.stage2), copy.copy(self.table)
        table.desks = [desk, *self.table.desks[1:]]
        stage2.tables = [table]
        return stage2

    def finals(self, updater: str) -> None:
        """Nobody is left anywhere, and the table is sound; the last of what ``updater`` returns is its walker."""
        at, scene, engine, table = self.at, self.scene, self.engine, self.table

        def sound(view: View) -> None:
            before = table.desks
            table.desks = [view.result(updater)[-1], view.result("vCPU")]
            try:
                table.check()
            finally:
                table.desks = before

        scene.final("nothing is left in flux", lambda view: view.word("vm", int(at.FLUX)) & 255 == 0)
        scene.final("nobody is left in a section", lambda _view: engine.srcu.check() or not engine.srcu.inside())
        scene.final("the lock is free", lambda view: view.word("inode", int(self.small.at.LOCK)) == 0)
        scene.final("tables are sound", sound)


def convert(scene: Scene) -> None:
    """A shared access against a conversion to private."""
    made = SmallGmem(scene)
    small = made.small
    small.folio.folio_create(small.words, 0, 0)
    made.start_vcpu(private=False, wrong=SECRET)
    made.start_converter(writes=SECRET)
    made.finals("converter")
    scene.final("it was converted", lambda view: view.result("converter")[0] and small.state() != 0)


def rebind(scene: Scene, design: str) -> None:
    """A private access against a design that binds the frame to the other page."""
    made = SmallGmem(scene)
    small, engine, memslots = made.small, made.engine, made.engine.memslots
    for page in range(2):
        small.inode.states[page] = 8
        small.folio.folio_create(small.words, page, 0)
    made.start_vcpu(private=True, wrong=_FREED)
    apply = scene.room(f"designs.{design}").apply

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        apply(made.engine_of(slots_desk, ranges, took, desk), [made.change(0), made.bind(1)])
        small.atomics.host_store(small.memory, _FREED)
        return slots_desk, desk

    scene.thread("updater", updater, memslots.desk, engine._ranges, engine._took, made.table.desks[0])  # noqa: SLF001

    def slots_are_sound(view: View) -> None:
        memslots.desk = view.result("updater")[0]
        memslots.check()

    made.finals("updater")
    scene.final("slots are sound", slots_are_sound)


_SIZE = "SoftEngine, 8 table pages of 8 entries, 1 vCPU, 1 core, a file of 2 pages; 1 access"
MODELS = (
    Model(
        "production-gmem-convert",
        "on the path that production takes, no shared access reads what the guest wrote in private",
        f"{_SIZE}, 1 conversion",
        convert,
        geometry=CUT,
        buffer=2,
        steps=4000,
        dpor=False,
    ),
    Model(
        "production-gmem-rebind",
        "on the path that production takes, a private access meets no hole, nor the old page once the batch is over",
        f"{_SIZE}, atomic binds another page",
        partial(rebind, design="atomic"),
        geometry=_NO_BINDINGS,
        buffer=2,
        steps=4000,
        dpor=False,
    ),
    Model(
        "production-gmem-unacknowledged",
        "on the path that production takes, a private access meets no hole, nor the old page once the batch is over",
        f"{_SIZE}, atomic_unacknowledged binds another page",
        partial(rebind, design="atomic_unacknowledged"),
        geometry=_NO_BINDINGS,
        buffer=2,
        steps=4000,
        dpor=False,
        finds="assertion",
    ),
)
