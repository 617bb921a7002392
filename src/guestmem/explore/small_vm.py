"""A VM of the software engine small enough to be searched: what models of slots, vCPUs and designs share.

Engine, slots, SRCU, requests, flux, core tokens and designs are those of production; only sizes are cut. A vCPU's
access is made here from the engine's own pieces, in the order of ``vcpu.access``: that one counts and draws random
numbers, this one says what it saw.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..compiled import Own
from ..rcu.srcu import SRCU
from .scene import Scene
from .telling import Told, memslots_values, srcu_values, vm_tlb_changes, vm_values
from .twin import Mutation

if TYPE_CHECKING:
    from .view import View

__all__ = ["SMALL", "SmallVm", "memslots_label", "srcu_label", "vm_label"]

SMALL = (
    Mutation("engines/soft/layout.py", "TLB_ENTRIES = const(256)", "TLB_ENTRIES = const(2)"),
    Mutation("engines/soft/vcpu_threads.py", "_LOAD_WORDS = 1 << 15", "_LOAD_WORDS = 1 << 4"),
    Mutation("memslots/set.py", "max_slots: int = KVM_USER_MEM_SLOTS,", "max_slots: int = 2,"),
    Mutation("memslots/set.py", "node_words: int = 64,", "node_words: int = 17,"),
)
"""Sizes: a TLB of 2 entries, 2 slots for user space, nodes of 17 words. No mutants."""


def vm_label(scene: Scene) -> Callable[[int], str]:
    """Names of the words of the software engine's VM."""
    label: Callable[[int], str] = scene.room("engines.soft.layout").VM.label
    return Told(label, vm_values(label))


def _srcu_label(index: int) -> str:
    return SRCU.label(index).lower()


srcu_label = Told(_srcu_label, srcu_values(_srcu_label))
"""A word of SRCU's layout."""


def memslots_label(scene: Scene, first_record: int, first_node: int) -> Callable[[int], str]:
    """Names of the words of a VM's slots: header, sets, and the fields of records."""
    layout = scene.room("memslots.layout")

    def label(index: int) -> str:
        record, word = divmod(index, layout.RECORD_WORDS)
        if first_record <= record and index < first_node:
            field = layout.RECORD.label(word).lower()
            return f"record {record} {field}" if field else ""
        return str(layout.MEMSLOTS.label(index)).lower().replace("_", " ") if index < layout.MEMSLOTS.size else ""

    return Told(label, memslots_values(scene))


class SmallVm:
    """A real ``SoftEngine`` of ``vcpus`` vCPUs on ``cores`` cores whose words the scene knows.

    ``slots`` are (id, base_gfn, npages, userspace_addr, flags), there from the start.
    """

    def __init__(
        self, scene: Scene, vcpus: int, cores: int = 1, slots: Sequence[tuple[int, int, int, int, int]] = ()
    ) -> None:
        self.scene, self.vcpus = scene, vcpus
        self.at = scene.room("engines.soft.layout")
        self.atomics = scene.room("atomics")
        self.requests, self.vcpu = scene.room("engines.soft.requests"), scene.room("engines.soft.vcpu")
        self.tlb, self.cores = scene.room("engines.soft.tlb"), scene.room("engines.soft.cores")
        self._lookup = scene.room("memslots.lookup")
        made = scene.room("engines.soft.engine").SoftEngine
        self._engine = made(vcpus, cores=cores, stage2=False)
        self.change = scene.room("memslots.changes").Change
        for slot in slots:
            self._engine.set_memory_region(self.change(*slot))
        memslots = self._engine.memslots
        shape = memslots.geometry
        self.vm = scene.words("vm", self._engine._vm, vm_label(scene))  # noqa: SLF001 - the models are of its words
        self.load = scene.words("load", self._engine._load)  # noqa: SLF001 - as above
        self.srcu = scene.words("srcu", memslots.srcu.words, srcu_label)
        self.memslots = scene.words(
            "memslots", memslots.words, memslots_label(scene, shape.first_record, shape.first_node)
        )

    def vcpu_own(self, vcpu: int) -> Own:
        """The words of a vCPU, to be handed to its thread."""
        own: Own = self.scene.own(int(self.at.OWN_WORDS))
        at, cells = self.at, self.vm.cells
        base = int(at.VCPUS) + int(at.VCPU) * vcpu
        cells[base + int(at.DONE)] = own[int(at.ACKED)] = cells[base + int(at.REQUESTED)]  # of the slots made above
        own[int(at.FLUSHED)], own[int(at.READER)] = cells[int(at.FLUSHES)], 1 + vcpu
        self.scene.tell(own, vm_tlb_changes(at))
        return own

    def updater_own(self) -> tuple[Own, Own]:
        """The words of an updater, to be handed to its thread and there to ``engine()``: desk, and ranges."""
        return self._engine.memslots.desk, self.scene.own(3 * int(self.at.FLUX_MAX))

    def engine(self, desk: Own, ranges: Own) -> Any:
        """From an updater's thread: the engine as this run of the thread finds it."""
        engine, memslots = copy.copy(self._engine), copy.copy(self._engine.memslots)
        memslots.desk, memslots.slots_lock, memslots._spare = desk, threading.Lock(), []  # noqa: SLF001 - fresh state
        for name in ("copy_find", "copy_by_id", "copy_slots"):
            setattr(memslots, f"_{name}", getattr(self._lookup, name))
        engine.memslots, engine.counts = memslots, copy.copy(self._engine.counts)
        engine._ranges, engine._spare, engine._holding = ranges, [], threading.Lock()  # noqa: SLF001 - fresh state
        return engine

    # What vCPU threads call.

    def enter(self, own: Own, vcpu: int) -> None:
        """Enter the guest; these models do not stop VMs."""
        assert self.vcpu.enter_guest(self.vm, self.load, own, vcpu), "the VM does not stop"

    def look(self, own: Own, vcpu: int) -> None:
        """Look for requests."""
        assert self.vcpu.look(self.vm, self.load, own, vcpu), "the VM does not stop"

    def leave(self, vcpu: int) -> None:
        """Leave the guest for good."""
        self.requests.leave_guest(self.vm, vcpu, self.at.OUTSIDE)
        self.cores.give_core(self.vm)

    def translate(self, own: Own, vcpu: int, gfn: int, *, writes: bool = False) -> int:
        """Host address of a frame as an access finds it: TLB, fault, waits, looks; 0 for a hole or no right."""
        code, atomics, at, vm, load = self.vcpu, self.atomics, self.at, self.vm, self.load
        while True:
            host = self.tlb.tlb_lookup(own, gfn, writes)
            if host:
                return int(host)
            swaps = atomics.load_acquire(vm, at.SWAPS)
            outcome = code.fault(vm, self.memslots, self.srcu, own, gfn, writes)
            if outcome == code.FILLED:
                running = code.look(vm, load, own, vcpu)
            elif outcome == code.IN_FLUX:
                running = code.wait_out_flux(vm, load, own, vcpu)
            elif outcome == code.INVALID and atomics.load_relaxed(vm, at.RETRIES_INVALID):
                running = code.wait_out_invalid(vm, load, own, vcpu, swaps)
            else:
                return 0
            assert running, "the VM does not stop"

    # Properties that every model of a VM has.

    def finals(self, updater: str = "") -> None:
        """In the end every core token is given back, nobody waits, nobody is inside a section, and slots are sound.

        The result of the thread ``updater`` is its desk, or begins with it.
        """
        at, scene, engine = self.at, self.scene, self._engine
        scene.final(
            "every core token was given back",
            lambda view: view.word("vm", int(at.NEXT_TICKET)) == view.word("vm", int(at.SERVING)),
        )
        scene.final("no updater is left over", lambda view: view.word("vm", int(at.WAITING)) == 0)
        scene.final("no pause is left over", lambda view: view.word("vm", int(at.PAUSED)) == 0)
        scene.final("nothing is left in flux", lambda view: view.word("vm", int(at.FLUX)) & 255 == 0)
        scene.final("nobody is left in a section", lambda _view: engine.srcu.check() or not engine.srcu.inside())

        def slots_are_sound(view: View) -> None:
            desk = view.result(updater)
            engine.memslots.desk = desk[0] if isinstance(desk, tuple) else desk
            engine.memslots.check()

        if updater:
            scene.final("both sets of slots are sound, and the same", slots_are_sound)
