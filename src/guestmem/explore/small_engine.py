"""The software engine on the path that production takes, small enough to be searched.

Engine, slots, SRCU, requests, flux, core tokens, stage-2 tables, zaps, TLBs, walks, exits and faults are those that
run; only sizes are cut (``SMALL``): 8 table pages of 8 entries, TLBs of 2 + 2 + 2 entries, 2 slots.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .small_vm import memslots_label, srcu_label, vm_label
from .telling import table_words, tlb_changes

if TYPE_CHECKING:
    from ..compiled import Own
    from .scene import Scene

__all__ = ["AGAIN", "SmallEngine"]

_BATCH = 4
"""Changes of the largest batch that goes by one call without more room."""

AGAIN = 1
"""What ``stage2_exit`` comes to when the access is to be made again."""


class SmallEngine:
    """A ``SoftEngine`` whose words the scene knows, with ``slots`` (arguments of ``Change``) from the start.

    As in production, ``atomic`` asks for one call first: a batch by which no vCPU loses anything takes no phases.
    """

    def __init__(
        self, scene: Scene, slots: Sequence[tuple[int, ...]] = (), *, vcpus: int = 1, address_spaces: int = 1
    ) -> None:
        self.scene, self.at, self.atomics = scene, scene.room("engines.soft.layout"), scene.room("atomics")
        made = scene.room("engines.soft.engine").SoftEngine
        self.engine = engine = made(vcpus, cores=1, address_spaces=address_spaces)
        engine.short_cut, self._room = True, scene.room("engines.soft.at_once").Room
        self.change = scene.room("memslots.changes").Change
        self.exits, self.vcpu = scene.room("engines.soft.stage2_vcpu"), scene.room("engines.soft.vcpu")
        self._walk, self._address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
        self._lookup = scene.room("memslots.lookup")
        self._no_file = scene.room("engines.soft.gmem_slot").Gmem(*engine.file_words(0))
        for slot in slots:
            engine.set_memory_region(self.change(*slot))
        self.memslots, self.tables = engine.memslots, engine.stage2.tables
        shape = self.memslots.geometry
        self.vm = scene.words("vm", engine._vm, vm_label(scene))  # noqa: SLF001 - the models are of its words
        self.load = scene.words("load", engine._load)  # noqa: SLF001 - as above
        self.srcu = scene.words("srcu", self.memslots.srcu.words, srcu_label)
        label = memslots_label(scene, shape.first_record, shape.first_node)
        self.slots = scene.words("memslots", self.memslots.words, label)
        scene.words("table", engine.stage2.pool.words, table_words(self.tables[0], engine.stage2.pool))
        scene.words("page", engine.stage2.pool.pages)
        for as_id, table in enumerate(self.tables):
            scene.words(f"mmu {as_id}" if address_spaces > 1 else "mmu", table.mmu)
            for desk in table.desks:
                scene.room("stage2.free_list").cache_topup(*table.words[:3], desk, 2)

    # Words of threads.

    def vcpu_words(self, vcpu: int = 0) -> tuple[Own, ...]:
        """Of a vCPU: desk and TLB of each address space, own."""
        at, own = self.at, self.engine._own[vcpu]  # noqa: SLF001 - as above
        base, cells = int(at.VCPUS) + int(at.VCPU) * vcpu, self.vm.cells
        cells[base + int(at.DONE)] = own[int(at.ACKED)] = cells[base + int(at.REQUESTED)]  # of the slots made above
        own[int(at.LOADED)] = cells[int(at.LOAD)]
        words: list[Own] = []
        for table, tlbs in zip(self.tables, self.engine.stage2.tlbs, strict=True):
            self.scene.tell(tlbs[vcpu].words, tlb_changes(table.format.geometry.shift))
            words += (table.desks[1 + vcpu], tlbs[vcpu].words)
        return *words, own

    def updater_words(self) -> tuple[Own, ...]:
        """Of an updater: desk of the slots, ranges, what ``region`` counts, desk of each table."""
        desks = (table.desks[0] for table in self.tables)
        return self.memslots.desk, self.engine._ranges, self.engine._took, *desks  # noqa: SLF001 - as above

    def of(self, slots_desk: Own, ranges: Own, took: Own, *desks: Own) -> Any:
        """From an updater's thread: the engine as this run of the thread finds it; ``desks`` are one a table."""
        engine, memslots, stage2 = (copy.copy(each) for each in (self.engine, self.memslots, self.engine.stage2))
        memslots.desk, memslots.slots_lock, memslots._spare = slots_desk, threading.Lock(), []  # noqa: SLF001
        for name in ("copy_find", "copy_by_id", "copy_slots"):
            setattr(memslots, f"_{name}", getattr(self._lookup, name))
        stage2.tables = [copy.copy(table) for table in self.tables]
        for table, desk in zip(stage2.tables, desks, strict=True):
            table.desks = [desk, *table.desks[1:]]
        stage2._spare = []  # noqa: SLF001 - fresh state
        engine.memslots, engine.stage2, engine.counts = memslots, stage2, copy.copy(engine.counts)
        engine._ranges, engine._took = ranges, took  # noqa: SLF001 - fresh state
        engine._spare, engine._holding = [], threading.Lock()  # noqa: SLF001 - as above
        engine.room = self._room(_BATCH)
        engine.dirty = copy.copy(engine.dirty)
        engine.dirty._memslots, engine.dirty._stage2 = memslots, stage2  # noqa: SLF001 - as above
        return engine

    # What vCPU threads call. An access is made as by ``stage2_access``, which counts and does not say.

    def enter(self, tlb: Own, own: Own, vcpu: int = 0, as_id: int = 0) -> None:
        """Enter the guest; these models do not stop VMs."""
        assert self.vcpu.enter_guest(self.vm, self.load, own, vcpu), "the VM does not stop"
        shape, pool, _, mmu = self.tables[as_id].words
        self._walk.tlb_enter(shape, pool, mmu, tlb)

    def look(self, tlb: Own, own: Own, vcpu: int = 0) -> None:
        """Apply invalidations and look for requests."""
        slots = self.exits.Slots(self.vm, self.slots, self.srcu, own)
        running = self.exits.stage2_look(slots, self.load, self.tables[0].at(1 + vcpu), tlb, vcpu)
        assert running, "the VM does not stop"

    def leave(self, tlb: Own, own: Own, vcpu: int = 0, as_id: int = 0) -> None:
        """Leave the guest for good."""
        self._walk.tlb_leave(self.tables[as_id].mmu, tlb)
        self.vcpu.leave_core(self.vm, own, vcpu, False)

    def reaches(self, tlb: Own, gpa: int, kind: int, as_id: int = 0) -> bool:
        """Whether an access finds a translation, by TLB or walk; ``host_load`` and ``host`` then go by it."""
        shape, pool, _, mmu = self.tables[as_id].words
        return bool(self._walk.tlb_translate(shape, pool, mmu, tlb, gpa, gpa, 1 << kind) == 0)

    def host(self, tlb: Own) -> Any:
        """Host address of the last access that found a translation."""
        return tlb[self._address]

    def exit(self, desk: Own, tlb: Own, own: Own, access: tuple[int, int, bool], vcpu: int = 0, as_id: int = 0) -> int:
        """An exit for a fault at a frame, of a kind (0 reads, 1 writes), of memory that must be there: what it came to.

        In the guest again when it returns.
        """
        gfn, kind, must = access
        slots = self.exits.Slots(self.vm, self.slots, self.srcu, own)
        table = self.exits.Table(*self.tables[as_id].words, desk)
        made = self.exits.Access(gfn, kind, False, must, False, 0)
        came: int = self.exits.stage2_exit(slots, self.load, table, tlb, self._no_file, vcpu, made, False)
        return came

    def fault(self, desk: Own, tlb: Own, own: Own, gfn: int) -> int:
        """A read fault alone, outside the guest: what it came to."""
        fault = self.scene.room("engines.soft.user_mem_abort").stage2_fault
        slots = self.exits.Slots(self.vm, self.slots, self.srcu, own)
        came: int = fault(slots, self.exits.Table(*self.tables[0].words, desk), tlb, gfn, False, False)
        return came

    # Properties that every model of an engine has.

    def finals(self) -> None:
        """In the end nothing is in flux, nobody is inside a section, every core token is back."""
        at, scene, srcu = self.at, self.scene, self.engine.srcu
        scene.final("nothing is left in flux", lambda view: view.word("vm", int(at.FLUX)) & 255 == 0)
        scene.final("nobody is left in a section", lambda _view: srcu.check() or not srcu.inside())
        scene.final(
            "every core token was given back",
            lambda view: view.word("vm", int(at.NEXT_TICKET)) == view.word("vm", int(at.SERVING)),
        )

    def are_sound(self, slots_desk: Own, *desks: Own) -> None:
        """Slots are, and the first table with these desks, the updater's first."""
        self.memslots.desk, table = slots_desk, self.tables[0]
        self.memslots.check()
        before, table.desks = table.desks, list(desks)
        try:
            table.check()
        finally:
            table.desks = before
