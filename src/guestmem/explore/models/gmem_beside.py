"""Slots with a guest_memfd, and more than one who changes or looks: two vCPUs; a conversion beside a transaction.

A vCPU is a TLB, walks, and ``gmem_slot_fault`` as its exits call it; conversions, attributes of the VM, the engine's
invalidations, ``SoftUpdate`` and ``Rebinding`` are those that run. Sizes are cut as in ``production_gmem``. What slots
have bound is words here, behind the names of ``Bindings``, for two threads look at it.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_file import PAGE
from ..twin import Mutation
from .production_gmem import CUT, GFN, SmallGmem

if TYPE_CHECKING:
    from ...compiled import Own, Words

__all__ = ["MODELS"]

_FREED, _TRIES = 99, 2
"""Faults of an access, at most, and one more."""
_CREATED = GFN + 1


class _Vm(SmallGmem):
    """With vCPUs that fault and look, and do nothing else: they hold no core, and nobody asks them for anything."""

    def start_fault(self, vcpu: int, *, private: bool = False, gfn: int = GFN) -> None:
        """VCPU number ``vcpu`` faults once at a frame, and that is all: its leaf is there afterwards, or not."""
        fault = self.scene.room("engines.soft.gmem_slot")

        def run(desk: Own, own: Own, out: Own) -> Own:
            fault.gmem_slot_fault(*self._bundles(desk, own, out), gfn, private, False)
            return desk

        self._start(vcpu, run)

    def start_access(self, *, wrong: int) -> None:
        """VCPU 0 reads the frame by a shared access, through its TLB, and may never see ``wrong``."""
        scene, table = self.scene, self.table
        fault, filled = scene.room("engines.soft.gmem_slot"), int(scene.room("engines.soft.vcpu").FILLED)
        walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
        shape, pool, _, mmu = table.words
        tlb, ipa = self.engine.stage2.tlbs[0][0].words, GFN << 12

        def run(desk: Own, own: Own, out: Own, tlb: Own) -> Own:
            bundles = self._bundles(desk, own, out)
            walk.tlb_enter(shape, pool, mmu, tlb)
            came, tries = filled, _TRIES
            while came == filled and walk.tlb_translate(shape, pool, mmu, tlb, ipa, ipa, 1) != 0:
                walk.tlb_leave(mmu, tlb)
                tries -= 1
                if not tries:
                    return desk  # it would go on for as long as others change its page
                came = fault.gmem_slot_fault(*bundles, GFN, False, False)
                walk.tlb_enter(shape, pool, mmu, tlb)
            if came == filled:
                assert self.atomics.host_load(tlb[address]) != wrong, "a shared access saw what it may not"
            walk.tlb_leave(mmu, tlb)
            return desk

        self._start(0, run, tlb)

    def _bundles(self, desk: Own, own: Own, out: Own) -> tuple[Any, Any, Any]:
        """What the fault takes first."""
        bundles = self.scene.room("engines.soft.words")
        gmem = self.scene.room("engines.soft.gmem_slot").Gmem(*self.words, out)
        slots = bundles.Slots(self.vm, self.slots, self.srcu, own)
        return slots, self.scene.room("engines.soft.stage2_vcpu").Table(*self.table.words, desk), gmem

    def _start(self, vcpu: int, run: Any, *more: Own) -> None:
        own = self.engine._own[vcpu]  # noqa: SLF001 - the model is of its words
        own[int(self.at.FILE)] = self.number
        self.scene.thread(f"vCPU {vcpu}", run, self.table.desks[1 + vcpu], own, self.scene.own(3), *more)

    def kinds_agree(self, gfn: int, page: int) -> None:
        """In the end no leaf of a kind is there that the page is not of."""
        private = self.private

        def agree(_view: Any) -> bool:
            is_private = self.small.state(page) != 0
            return self.table.lookup((gfn << 12) | (0 if is_private else private)) is None

        self.scene.final("no leaf is of the other kind than its page", agree)

    def finals_of(self, updater: str, vcpus: int) -> None:
        """The lock is free, nobody is inside a section, and the table is sound."""
        scene, engine, table = self.scene, self.engine, self.table

        def sound(view: Any) -> None:
            before = table.desks
            table.desks = [view.result(updater)[-1], *(view.result(f"vCPU {vcpu}") for vcpu in range(vcpus))]
            try:
                table.check()
            finally:
                table.desks = before

        scene.final("the table is sound", sound)
        scene.final("the file's lock is free", lambda view: view.word("inode", int(self.small.at.LOCK)) == 0)
        scene.final("nobody is left in a section", lambda _view: engine.srcu.check() or not engine.srcu.inside())


def two_vcpus(scene: Scene) -> None:
    """One faults by a private access, one by a shared one, while the page becomes private."""
    made = _Vm(scene, vcpus=2)
    made.small.folio.folio_create(made.small.words, 0, 0)
    made.start_fault(0)
    made.start_fault(1, private=True)
    made.start_converter()
    made.kinds_agree(GFN, 0)
    made.finals_of("converter", 2)


def _bindings(scene: Scene, words: Words, slots: list[Any]) -> Any:
    """``Bindings`` of slot 0, which has page 0, and of slot 1, which may come: words say which have it."""
    atomics, kind = scene.room("atomics"), scene.room("gmem.bindings").Bindings

    class Bindings(kind):  # type: ignore[valid-type, misc] # of the scene's own room
        """What it keeps in a map, a word for each slot; what it does with that is its own."""

        def __len__(self) -> int:
            return len(list(self.overlapping(0, 2)))

        def __contains__(self, key: object) -> bool:
            return any(key == (0, slot.id) and atomics.load_relaxed(words, slot.id) for slot in slots)

        def other(self, first: int, end: int, _but: object = ()) -> Any:
            """Slots 0 and 1 have different pages."""
            del first, end

        def promise(self) -> None:
            """There is room."""

        def overlapping(self, first: int, end: int) -> Iterator[tuple[Any, int, int]]:
            """As in ``Bindings``: under the file's lock."""
            for number, slot in enumerate(slots):
                if first <= number < end and atomics.load_relaxed(words, number):
                    yield slot, slot.base_gfn, slot.base_gfn + 1

        def put(self, slot: Any, _first: int, *, promised: bool = False) -> None:
            """A slot has its page."""
            assert promised
            atomics.store_relaxed(words, slot.id, 1)

        def remove(self, slot: int, _as_id: int) -> None:
            """A slot has nothing any more."""
            atomics.store_relaxed(words, slot, 0)

    return object.__new__(Bindings)


def transaction(scene: Scene) -> None:
    """Slot 1 comes, at another frame and with the file's second page, while that page becomes private."""
    made = _Vm(scene)
    small, engine, memslots = made.small, made.engine, made.engine.memslots
    small.folio.folio_create(small.words, 1, 0)
    change = made.change(1, _CREATED, 1, 0, made.FILE_FLAG, 0, made.number, PAGE)
    slots = [engine.slot(0), change.as_slot()]
    words = scene.words("bound", [1, 0, 0], lambda index: ("slot 0", "slot 1", "incoming")[index])
    atomics = made.atomics
    bindings = _bindings(scene, words, slots)
    coming = scene.room("engines.soft.files")._Coming([scene.room("gmem.bindings").Bound(slots[1], 1)])  # noqa: SLF001
    kind = type(made.file)

    class File(kind):  # type: ignore[valid-type, misc] # of the scene's own room
        """What slots that come will have is a word, too."""

        @property
        def incoming(self) -> Any:
            """What is under way."""
            return coming if atomics.load_relaxed(words, 2) else None

        @incoming.setter
        def incoming(self, value: object) -> None:
            atomics.store_relaxed(words, 2, int(value is not None))

    made.file.__class__, made.file.bindings = File, bindings
    del made.file.__dict__["incoming"]
    made.start_fault(0, gfn=_CREATED)
    made.start_converter(page=1, bound=True)
    made.kinds_agree(_CREATED, 1)

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        with made.engine_of(slots_desk, ranges, took, desk).update() as update:
            update.stage_all([change])
            update.publish()
            update.settle()
        return slots_desk, desk

    took, ranges = engine._took, engine._ranges  # noqa: SLF001 - as above
    scene.thread("updater", updater, memslots.desk, ranges, took, scene.own(made.table.desks[0].tolist()))
    scene.final("slot 1 has its page", lambda view: (view.word("bound", 1), view.word("bound", 2)) == (1, 0))
    scene.final("the file's lock is free", lambda view: view.word("inode", int(small.at.LOCK)) == 0)
    scene.final("nobody is left in a section", lambda _view: engine.srcu.check() or not engine.srcu.inside())


def attributes(scene: Scene) -> None:
    """A shared access, of ``userspace_addr``, in a slot of a file that was closed, while the VM's attribute comes."""
    made = _Vm(scene, of_vm=True)
    small, engine = made.small, made.engine
    made.file.close()
    made.start_access(wrong=_FREED)
    of_vm = made.file.attributes
    scene.words("attributes", of_vm.ranges.words)

    def setter(desk: Own, map_desk: Own, freed: Own) -> tuple[Own]:
        files, changed = copy.copy(engine.files), copy.copy(of_vm)
        files._stage2 = made.of(desk)  # noqa: SLF001 - fresh state
        ranges = changed.ranges = copy.copy(of_vm.ranges)
        ranges._desk, ranges._freed, ranges._lock = map_desk, freed, threading.Lock()  # noqa: SLF001 - as above
        ranges._snapshots, ranges._dropped = [], deque()  # noqa: SLF001 - as above
        changed._invalidate = files.vm_invalidation  # noqa: SLF001 - as above
        changed.set(GFN * PAGE, PAGE, 8)
        small.atomics.host_store(small.memory + PAGE, _FREED)
        return (desk,)

    map_desk = scene.own(of_vm.ranges._desk.tolist())  # noqa: SLF001 - as above
    scene.thread("setter", setter, made.table.desks[0], map_desk, scene.own(64))
    made.finals_of("setter", 1)
    scene.final("the frame is private", lambda _view: of_vm.ranges.get(GFN) == 8)


_SIZE = "SoftEngine, 8 table pages of 8 entries, a file of 2 pages"
MODELS = (
    Model(
        "gmem-two-vcpus",
        "two vCPUs that fault by accesses of both kinds leave no leaf of another kind than the page has in the end",
        f"{_SIZE}, 2 vCPUs with 1 fault each, 1 conversion",
        two_vcpus,
        geometry=CUT,
        buffer=2,
        steps=4000,
        dpor=False,
    ),
    Model(
        "gmem-transaction",
        "in a slot that comes, no shared leaf is left of a page that a conversion beside the transaction had private",
        f"{_SIZE}, 1 vCPU with 1 fault, 1 conversion, 1 transaction that creates a slot",
        transaction,
        geometry=CUT,
        buffer=2,
        steps=4000,
        dpor=False,
    ),
    Model(
        "gmem-attributes",
        "no shared access reads a frame's shared memory once the VM's attributes have it private; the file is closed",
        f"{_SIZE}, 1 vCPU with 1 access, 1 KVM_SET_MEMORY_ATTRIBUTES",
        attributes,
        geometry=(*CUT, Mutation("gmem/vm_attributes.py", "RangeMap()", "RangeMap(capacity=4, fanout=3)")),
        buffer=2,
        steps=4000,
        dpor=False,
    ),
)
