"""A VM of the software engine small enough to be searched: what models of slots, vCPUs and designs share.

Engine, slots, SRCU, requests, flux, core tokens and designs are those of production; only sizes are cut. What stands
between an access and the slots is not: no table, but a TLB and a fault of a few lines, here (``SmallGuest``,
``SmallVm``). So these models are of what is asked of vCPUs and in what order, whatever the tables are, and small enough
for two searches and weak memory. ``models/production.py`` has tables, walks, zaps and faults of production.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..compiled import Own, Words
from ..rcu.srcu import SRCU
from .scene import Scene
from .telling import Told, memslots_values, srcu_values, vm_tlb_changes, vm_values
from .twin import Mutation

if TYPE_CHECKING:
    from .view import View

__all__ = ["SMALL", "SmallGuest", "SmallVm", "memslots_label", "srcu_label", "vm_label"]

_TABLES = "engines/soft/stage2.py"
SMALL = (
    Mutation("engines/soft/vcpu_threads.py", "_LOAD_WORDS = 1 << 15", "_LOAD_WORDS = 1 << 4"),
    Mutation("memslots/set.py", "max_slots: int = KVM_USER_MEM_SLOTS,", "max_slots: int = 2,"),
    Mutation("memslots/set.py", "node_words: int = 64,", "node_words: int = 17,"),
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
"""Sizes: 2 slots for user space, nodes of 17 words, 8 table pages of 8 entries at pretended addresses. No mutants."""

_ENTRIES, _ENTRY = 2, 2
"""Of the TLB of these models: entries, and words of one: gfn << 2 | writable << 1 | valid, host address."""
_VALID, _WRITABLE = 1, 2
_READONLY = 2


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


class SmallGuest:
    """The words of a VM and its load, and what vCPU threads call: production's, with a TLB of two entries.

    What asks vCPUs to forget their translations is another load (``flush``): they take it up where they look for
    requests, before they acknowledge, and then empty the TLB, which stands behind the words of production in theirs.
    """

    def __init__(self, scene: Scene, vm: Words, load: Words) -> None:
        self.scene, self.vm, self.load = scene, vm, load
        self.at, self.atomics = scene.room("engines.soft.layout"), scene.room("atomics")
        self.requests, self.vcpu = scene.room("engines.soft.requests"), scene.room("engines.soft.vcpu")
        self.cores = scene.room("engines.soft.cores")
        self._flushed = int(self.at.OWN_WORDS)
        self._tlb = self._flushed + 1

    def guest_own(self) -> Own:
        """The words of a vCPU, to be handed to its thread."""
        own: Own = self.scene.own(self._tlb + _ENTRIES * _ENTRY)
        self.scene.tell(own, vm_tlb_changes(self._tlb, _ENTRIES, _ENTRY))
        return own

    def enter(self, own: Own, vcpu: int) -> None:
        """Enter the guest; these models do not stop VMs."""
        self.goes_on(own, self.vcpu.enter_guest(self.vm, self.load, own, vcpu))

    def look(self, own: Own, vcpu: int) -> None:
        """Look for requests."""
        self.goes_on(own, self.vcpu.look(self.vm, self.load, own, vcpu))

    def leave(self, vcpu: int) -> None:
        """Leave the guest for good."""
        self.requests.leave_guest(self.vm, vcpu, self.at.OUTSIDE)
        self.cores.give_core(self.vm)

    def goes_on(self, own: Own, running: bool) -> None:
        """After a look for requests: the TLB is emptied if that was asked for."""
        assert running, "the VM does not stop"
        if own[self._flushed] != own[int(self.at.LOADED)]:
            own[self._flushed] = own[int(self.at.LOADED)]
            for entry in range(_ENTRIES):
                own[self._tlb + _ENTRY * entry] = 0

    def lookup(self, own: Own, gfn: int, *, writes: bool = False) -> int:
        """Host address of a frame by the TLB; 0: it has no entry, or none to write by."""
        tag = own[where := self._place(gfn)]
        known = tag >> 2 == gfn and tag & _VALID and (tag & _WRITABLE or not writes)
        return int(own[where + 1]) if known else 0

    def fill(self, own: Own, gfn: int, host: int, *, writable: bool = True) -> None:
        """Have the TLB know a frame."""
        where = self._place(gfn)
        own[where], own[where + 1] = gfn << 2 | writable << 1 | _VALID, host

    def _place(self, gfn: int) -> int:
        return self._tlb + _ENTRY * (gfn % _ENTRIES)

    def ask_for_flush(self) -> None:
        """What the next request asks for."""
        self.atomics.fetch_add(self.vm, self.at.LOAD, 1)

    def flush(self, vcpus: int, targets: Own) -> None:
        """From an updater: no vCPU uses a translation from before when this returns."""
        self.ask_for_flush()
        self.requests.request_all(self.vm, vcpus, targets)
        self.requests.wait_for_acknowledgements(self.vm, vcpus, targets)


class _NoTables:
    """In the place of an engine's stage-2 tables: zapped, or protected, is all, by a flush of every vCPU."""

    zaps_all = True
    private_gfn = private_zaps = 0

    def __init__(self, guest: SmallGuest, engine: Any) -> None:
        self._guest, self._engine = guest, engine

    def take(self, as_id: int, ranges: Iterable[tuple[int, ...]], *, wait: bool = True) -> int:
        """Zap, or protect, ranges: with all others."""
        del as_id, ranges
        return self.zap_all(wait=wait)

    zap = protect = take

    def zap_all(self, *, wait: bool = True) -> int:
        """Have every vCPU forget its translations."""
        self._guest.ask_for_flush()
        self._engine.request(wait=wait)
        return 0


class SmallVm(SmallGuest):
    """A real ``SoftEngine`` of ``vcpus`` vCPUs on ``cores`` cores whose words the scene knows.

    ``slots`` are (id, base_gfn, npages, userspace_addr, flags), there from the start.
    """

    def __init__(
        self, scene: Scene, vcpus: int, cores: int = 1, slots: Sequence[tuple[int, int, int, int, int]] = ()
    ) -> None:
        self.vcpus, self._lookup = vcpus, scene.room("memslots.lookup")
        self._flux, self._srcu = scene.room("engines.soft.flux"), scene.room("rcu.srcu")
        self._records = scene.room("memslots.layout")
        self._engine = engine = scene.room("engines.soft.engine").SoftEngine(vcpus, cores=cores)
        self.change = scene.room("memslots.changes").Change
        for slot in slots:
            engine.set_memory_region(self.change(*slot))
        memslots = engine.memslots
        shape = memslots.geometry
        super().__init__(
            scene,
            scene.words("vm", engine._vm, vm_label(scene)),  # noqa: SLF001 - the models are of its words
            scene.words("load", engine._load),  # noqa: SLF001 - as above
        )
        self.srcu = scene.words("srcu", memslots.srcu.words, srcu_label)
        self.memslots = scene.words(
            "memslots", memslots.words, memslots_label(scene, shape.first_record, shape.first_node)
        )

    def vcpu_own(self, vcpu: int) -> Own:
        """The words of a vCPU, to be handed to its thread."""
        own, at, cells = self.guest_own(), self.at, self.vm.cells
        base = int(at.VCPUS) + int(at.VCPU) * vcpu
        cells[base + int(at.DONE)] = own[int(at.ACKED)] = cells[base + int(at.REQUESTED)]  # of the slots made above
        own[int(at.READER)] = 1 + vcpu
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
        engine.stage2, engine.dirty = _NoTables(self, engine), copy.copy(engine.dirty)
        engine.dirty._memslots = memslots  # noqa: SLF001 - fresh state
        return engine

    def translate(self, own: Own, vcpu: int, gfn: int, *, writes: bool = False) -> int:
        """Host address of a frame as an access finds it: TLB, fault, waits, looks; 0 for a hole or no right.

        In the order of ``stage2_access`` and ``stage2_exit``: those count and draw random numbers.
        """
        code, at, vm, load = self.vcpu, self.at, self.vm, self.load
        while True:
            host = self.lookup(own, gfn, writes=writes)
            if host:
                return host
            swaps = self.atomics.load_acquire(vm, at.SWAPS)
            outcome = self._fault(own, gfn, writes)
            if outcome == code.FILLED:
                running = code.look(vm, load, own, vcpu)
            elif outcome == code.IN_FLUX:
                running = code.wait_out_flux(vm, load, own, vcpu)
            elif outcome == code.INVALID and self.atomics.load_relaxed(vm, at.RETRIES_INVALID):
                running = code.wait_out_invalid(vm, load, own, vcpu, swaps)
            else:
                return 0
            self.goes_on(own, running)

    def _fault(self, own: Own, gfn: int, writes: bool) -> Any:
        """FLUX, then the slot in a read-side section, then the TLB; as ``stage2_fault`` without tables."""
        code, at, layout, memslots = self.vcpu, self.at, self._records, self.memslots
        flux = self.atomics.load_acquire(self.vm, at.FLUX)
        protected = False
        if flux & 255:
            if self._flux.in_flux(self.vm, flux, gfn, writes):
                own[int(at.STALL_FLUX)] = flux
                return code.IN_FLUX
            protected = not writes and self._flux.in_flux(self.vm, flux, gfn, True)
        reader = own[int(at.READER)]
        self._srcu.srcu_enter(self.srcu, 0, reader)
        record = self._lookup.find(memslots, 0, gfn)
        outcome = code.HOLE
        if record:
            flags = layout.slot_flags(memslots, record)
            if flags & layout.KVM_MEMSLOT_INVALID:
                outcome = code.INVALID
            elif writes and flags & _READONLY:
                outcome = code.READONLY
            else:
                offset = (gfn - layout.slot_base_gfn(memslots, record)) << 12
                host = layout.slot_userspace_addr(memslots, record) + offset
                self.fill(own, gfn, host, writable=not flags & _READONLY and not protected)
                outcome = code.FILLED
        self._srcu.srcu_exit(self.srcu, 0, reader)
        return outcome

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
